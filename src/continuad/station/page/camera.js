// A camera at this computer or phone.

import { atEnd, h, put, memory } from "./dom.js";
import { button, complain, failed, iconButton, waiting } from "./parts.js";

const FORBIDDEN =
  "The browser lets a page use the camera only over https, or on the station itself (http://localhost).";
const REASONS = {
  NotAllowedError: [
    "The camera was not allowed.",
    "Allow it for this page: the sign beside the address, then load the page again.",
  ],
  NotFoundError: ["No camera was found.", "Plug one in, then try again."],
  NotReadableError: [
    "The camera is in use elsewhere or does not answer.",
    "Close other programs that use it, or plug it in again, then try again.",
  ],
  OverconstrainedError: ["That camera is gone.", "Choose another one."],
};

/** A live picture; `taken(file)` gets what the button (or the space bar) takes. */
export class Camera {
  constructor({ taken, closed, signal }) {
    Object.assign(this, { taken, closed, stream: null });
    this.video = h("video", {
      autoplay: true,
      muted: true,
      playsinline: true,
      "aria-label": "Live picture of the camera",
    });
    this.video.muted = true;
    this.view = h("div", { class: "camera-view" });
    this.devices = h("select", {
      id: "camera-device",
      "aria-label": "Camera",
      hidden: true,
      onchange: () => this.start(this.devices.value),
    });
    this.shutter = button("camera", "Take picture (space)", {
      id: "camera-take",
      class: "primary huge",
      disabled: true,
      onclick: () => this.take(),
    });
    this.element = h(
      "div",
      { class: "camera", id: "camera" },
      this.view,
      h(
        "div",
        { class: "row centre" },
        this.shutter,
        this.devices,
        iconButton("close", "Close the camera", { id: "camera-close", onclick: () => this.closed() }),
      ),
    );
    atEnd(signal, () => this.stop());
  }

  async start(device = memory.get("camera")) {
    this.stop();
    put(this.view, waiting("Starting the camera …"));
    if (!navigator.mediaDevices?.getUserMedia) {
      put(this.view, failed({ message: "The camera cannot be used from here.", remedy: FORBIDDEN }));
      return;
    }
    const attempt = (this.attempt = Symbol("attempt"));
    try {
      const best = { width: { ideal: 1920 }, height: { ideal: 1080 } };
      const video = device
        ? { ...best, deviceId: { ideal: device } }
        : { ...best, facingMode: { ideal: "environment" } };
      const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
      if (this.attempt !== attempt) return stream.getTracks().forEach((track) => track.stop());
      this.stream = stream;
      this.video.srcObject = stream;
      put(this.view, this.video);
      await this.video.play();
      stream.getVideoTracks()[0].addEventListener("ended", () => this.lost());
      this.shutter.disabled = false;
      await this.list(stream);
    } catch (error) {
      const [message, remedy] = REASONS[error.name] ?? ["The camera does not work.", error.message];
      put(
        this.view,
        failed({ message, remedy }, () => this.start(device)),
      );
    }
    return undefined;
  }

  async list(stream) {
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
    const current = stream.getVideoTracks()[0].getSettings().deviceId;
    memory.set("camera", current);
    put(
      this.devices,
      cameras.map(({ deviceId, label }, at) =>
        h("option", { value: deviceId, selected: deviceId === current }, label || `Camera ${at + 1}`),
      ),
    );
    this.devices.hidden = cameras.length < 2;
  }

  lost() {
    this.stop();
    put(
      this.view,
      failed({ message: "The camera was unplugged.", remedy: "Plug it in again, then try again." }, () => this.start()),
    );
  }

  async take() {
    if (this.shutter.disabled || !this.video.videoWidth) return;
    const canvas = h("canvas", { width: this.video.videoWidth, height: this.video.videoHeight });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (!blob) return complain({ message: "The picture could not be taken.", remedy: "Try again." });
    this.taken(new File([blob], `camera ${new Date().toLocaleTimeString()}`, { type: "image/png" }));
    return undefined;
  }

  stop() {
    this.attempt = null;
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
    this.shutter.disabled = true;
  }
}
