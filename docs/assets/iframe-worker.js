/* Browsers refuse workers in pages that are opened from disk. This runs a worker's script in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inner = frame.contentWindow;
      this.onInner = event => {
        if (event.source !== this.inner) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      };
      addEventListener("message", this.onInner);
      this.ready = new Promise(resolve => {
        const inner = this.inner;
        const pages = window;
        inner.importScripts = (...sources) => sources.reduce(
          (before, source) => before.then(() => new Promise((done, fail) => {
            const script = inner.document.createElement("script");
            script.src = source;
            script.onload = done;
            script.onerror = fail;
            inner.document.body.appendChild(script);
          })), Promise.resolve());
        const script = inner.document.createElement("script");
        script.src = url;
        script.onload = () => {
          this.deliver = data => inner.dispatchEvent(new MessageEvent("message", { data, source: pages }));
          inner.postMessage = data => pages.dispatchEvent(new MessageEvent("message", { data, source: inner }));
          resolve();
        };
        inner.document.body.appendChild(script);
      });
      this.frame = frame;
    }
    postMessage(data) { this.ready.then(() => this.deliver(data)); }
    terminate() {
      removeEventListener("message", this.onInner);
      this.frame.remove();
    }
  };
}
