/** The camera: open it, list the others, and say what to do where it fails. */

const REMEDIES = {
  NotAllowedError: "The browser does not allow this page to use the camera. Allow it beside the address, then start the camera again.",
  NotReadableError: "The camera is busy: another program or tab uses it. Close that one, then start the camera again.",
  NotFoundError: "There is no camera. Plug one in and start the camera again, or open a picture or a video.",
  OverconstrainedError: "The chosen camera is gone. Choose another one.",
};
const INSECURE = "Browsers give no camera to a page without HTTPS. Open it as http://localhost on the server's machine, or start the "
  + "server with --certificate and --key. Pictures and videos work here.";

/** Return what is wrong and the remedy. */
export function remedy(error) {
  return REMEDIES[error.name] ?? `The camera does not start (${error.message || error.name}). Unplug it, plug it in and start it again.`;
}

export class Camera {
  #stream = null;
  #run = 0;
  #encoder = new Worker(new URL("encoder.js", import.meta.url));

  constructor(video) { this.video = video; }

  /** Return the frame of now as a mirrored JPEG; null if there is none. Wait for it before the next call. */
  async jpeg() {
    if (!this.video.videoWidth) return null;
    const frame = "VideoFrame" in window ? new VideoFrame(this.video) : await createImageBitmap(this.video);
    return new Promise((resolve, reject) => {
      this.#encoder.onmessage = event => resolve(event.data);
      this.#encoder.onerror = () => reject(new Error("no picture"));
      this.#encoder.postMessage({frame}, [frame]);
    });
  }

  get isOn() { return this.#stream !== null; }

  /** Start a camera, an empty `id` for any; `onFrame` gets each new frame's time, `onEnd` is called when it is unplugged. */
  async start(id, onFrame, onEnd) {
    this.stop();
    if (!window.isSecureContext || !navigator.mediaDevices) throw Object.assign(new Error(INSECURE), {isRemedy: true});
    const run = ++this.#run;
    const size = {width: {ideal: 640}, height: {ideal: 480}, frameRate: {ideal: 30}};
    const stream = await navigator.mediaDevices.getUserMedia({video: {...size, ...(id && {deviceId: {exact: id}})}});
    if (run !== this.#run) return stream.getTracks().forEach(track => track.stop());
    this.#stream = stream;
    stream.getVideoTracks()[0].onended = () => { this.stop(); onEnd(); };
    this.video.srcObject = stream;
    await this.video.play();
    const next = this.video.requestVideoFrameCallback ? "requestVideoFrameCallback" : null;
    const wait = callback => next ? this.video[next](callback) : requestAnimationFrame(callback);
    const tick = now => {
      if (run !== this.#run) return;
      wait(tick);
      onFrame(now);
    };
    wait(tick);
  }

  stop() {
    this.#run += 1;
    this.#stream?.getTracks().forEach(track => track.stop());
    this.#stream = this.video.srcObject = null;
  }

  /** Fill a list with the cameras. Their names are known once the person has allowed one. */
  async list(select) {
    const devices = await navigator.mediaDevices?.enumerateDevices().catch(() => []) ?? [];
    const cameras = devices.filter(device => device.kind === "videoinput" && device.deviceId);
    const used = this.#stream?.getVideoTracks()[0]?.getSettings().deviceId;
    if (!cameras.length) return;
    select.replaceChildren(...cameras.map((each, place) => new Option(each.label || `camera ${place + 1}`, each.deviceId, false, each.deviceId === used)));
    select.disabled = false;
  }
}
