/** A worker that compresses camera frames; on the page itself browsers compress only when it is idle. */

const QUALITY = 0.8; // of JPEGs, 0-1
let canvas = null, context = null;

onmessage = async ({data: {frame}}) => {
  const width = frame.displayWidth ?? frame.width, height = frame.displayHeight ?? frame.height;
  if (canvas?.width !== width || canvas.height !== height) {
    canvas = new OffscreenCanvas(width, height);
    context = canvas.getContext("2d", {willReadFrequently: true});
  }
  context.drawImage(frame, 0, 0, width, height);
  frame.close();
  postMessage(await canvas.convertToBlob({type: "image/jpeg", quality: QUALITY}));
};
