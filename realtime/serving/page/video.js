/** A video of the person's own: send it, recognize every frame, then show any frame again. */

const PICTURE_EVERY = 200; // milliseconds between two pictures while the video is recognized

export class VideoFile {
  #page;
  #connection;
  #visitor;
  #isStopped = false;
  #upload = new AbortController();
  #isFollowing = true; // show the newest frame while the video is recognized
  #wanted = null; // place of the frame to fetch next
  #fetching = false;

  /** `page` has the functions hint, add, show, moved and ended. */
  constructor(connection, page) {
    this.#connection = connection;
    this.#visitor = connection.visitor;
    this.#page = page;
    this.results = [];
    this.place = 0;
    this.length = 0; // seconds, estimated until the end
    this.isPlaying = false;
  }

  /** Send the file and recognize its frames. */
  async analyze(file) {
    this.#page.hint(`sending ${file.name}…`);
    const response = await fetch(`video/${this.#visitor}?name=${encodeURIComponent(file.name)}`, {method: "POST", body: file, signal: this.#upload.signal})
      .catch(() => { if (!this.#isStopped) throw new Error(`${file.name} could not be sent: the server does not answer, or takes no file of this size.`); });
    if (this.#isStopped) return;
    const opened = await response.json().catch(() => ({error: "the connection was lost"}));
    if (!response.ok) throw new Error(opened.error ?? `${file.name} was refused`);
    this.length = (opened.count ?? 0) / opened.fps;
    let due = 0, warning = "";
    while (!this.#isStopped) {
      const isDue = performance.now() >= due;
      const reply = await this.#connection.command({type: "next", picture: isDue && this.#isFollowing});
      if (this.#isStopped) return;
      if (reply.type === "end") { warning = reply.warning; break; }
      const {blob, ...result} = reply;
      this.results.push(result);
      this.#page.add(result);
      if (!isDue) continue;
      due = performance.now() + PICTURE_EVERY;
      if (this.#isFollowing) {
        this.place = this.results.length - 1;
        if (blob) this.#page.show(result, await createImageBitmap(blob));
        else this.#page.hint(`${this.results.length} frames recognized…`);
      }
      this.#page.moved();
    }
    if (this.#isStopped) return;
    this.length = this.results.at(-1)?.time ?? 0;
    this.#page.ended(warning);
    if (this.#isFollowing) this.seek(0);
  }

  seek(place) {
    this.isPlaying = false;
    this.#goTo(place);
  }

  seekTime(seconds) {
    const later = this.results.findIndex(result => result.time >= seconds);
    this.seek(later < 0 ? this.results.length - 1 : later);
  }

  #goTo(place) {
    if (!this.results.length) return;
    this.#isFollowing = false;
    this.place = Math.max(0, Math.min(place, this.results.length - 1));
    this.#wanted = this.place;
    this.#page.moved();
    return this.#fetchWanted();
  }

  /** Fetch frames one by one, always the one that is wanted last. */
  async #fetchWanted() {
    if (this.#fetching) return;
    this.#fetching = true;
    while (this.#wanted !== null && !this.#isStopped) {
      const place = this.#wanted;
      this.#wanted = null;
      const response = await fetch(`frame/${this.#visitor}/${place}`).catch(() => null);
      if (response?.ok && !this.#isStopped) this.#page.show(this.results[place], await createImageBitmap(await response.blob()));
    }
    this.#fetching = false;
  }

  async toggle() {
    this.isPlaying = !this.isPlaying;
    this.#page.moved();
    if (!this.isPlaying) return;
    const last = this.results.length - 1, first = this.place >= last ? 0 : this.place;
    const start = performance.now() - 1000 * this.results[first].time;
    for (let place = first; this.isPlaying && !this.#isStopped;) {
      await this.#goTo(place);
      if (place === last) break;
      const now = (performance.now() - start) / 1000;
      const next = this.results.findIndex((result, index) => index > place && result.time >= now); // late frames are left out
      place = next < 0 ? last : next;
      await new Promise(resolve => setTimeout(resolve, 1000 * this.results[place].time + start - performance.now()));
    }
    if (this.isPlaying) { this.isPlaying = false; this.#page.moved(); }
  }

  stop() {
    this.#isStopped = true;
    this.#upload.abort();
    this.isPlaying = false;
  }
}
