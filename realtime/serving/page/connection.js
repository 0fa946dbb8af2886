/** The WebSocket: one request at a time, each with a reply; it reconnects by itself. */

const CAMERA_FRAME = 0, PICTURE = 1;
const FIRST_WAIT = 500, LONGEST_WAIT = 5000; // milliseconds until the next attempt

export class Connection extends EventTarget {
  #socket = null;
  #queue = Promise.resolve();
  #pending = null; // the request that waits for its reply
  #reply = null; // a reply whose picture has not come yet
  #wait = FIRST_WAIT;

  constructor(address) {
    super();
    this.address = address;
    this.visitor = "";
    this.#open();
  }

  get isOpen() { return this.visitor !== ""; }

  /** Send a command, and return its reply with `blob`, the JPEG that came with it. */
  command(content) { return this.#request(JSON.stringify(content)); }

  /** Send a camera frame or a picture; `seconds` is its time. */
  async picture(blob, seconds, isStill = false) {
    const head = new DataView(new ArrayBuffer(9));
    head.setUint8(0, isStill ? PICTURE : CAMERA_FRAME);
    head.setFloat64(1, seconds, true);
    return this.#request(await new Blob([head, blob]).arrayBuffer());
  }

  #request(message) {
    const reply = this.#queue.then(() => new Promise((resolve, reject) => {
      if (!this.isOpen) return reject(new Error("no connection"));
      this.#pending = {resolve, reject};
      this.#socket.send(message);
    }));
    this.#queue = reply.catch(() => {});
    return reply;
  }

  #open() {
    const socket = this.#socket = new WebSocket(this.address);
    socket.binaryType = "blob";
    socket.onmessage = event => this.#receive(event.data);
    socket.onclose = event => {
      this.visitor = "";
      this.#pending?.reject(new Error("the connection was lost"));
      this.#pending = this.#reply = null;
      this.dispatchEvent(new CustomEvent("lost", {detail: event.reason}));
      setTimeout(() => this.#open(), this.#wait);
      this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT);
    };
  }

  #receive(data) {
    if (data instanceof Blob) return this.#settle({...this.#reply, blob: data});
    const reply = JSON.parse(data);
    if (reply.type === "hello") {
      this.visitor = reply.visitor;
      this.#wait = FIRST_WAIT;
      this.dispatchEvent(new CustomEvent("ready", {detail: reply}));
    } else if (reply.picture) {
      this.#reply = reply;
    } else {
      this.#settle({...reply, blob: null});
    }
  }

  #settle(reply) {
    const {resolve} = this.#pending;
    this.#pending = this.#reply = null;
    resolve(reply);
  }
}
