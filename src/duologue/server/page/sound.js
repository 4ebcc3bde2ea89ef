/**
 * A microphone and a loudspeaker for one conversation. Sound is 16-bit samples, mono, `RATE` of them a second, both ways.
 * The browser cancels the echo of what it plays.
 */

export const RATE = 24000;
export const LATENCY_MS = 100; // from a piece's arrival to the ear, about: what the worklet waits for, and the device

const WANTED = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };

export class Sound {
  #context;
  #stream;
  #node;

  /** Whether this browser, at this address, can have a microphone. */
  static get isPossible() {
    return navigator.mediaDevices?.getUserMedia !== undefined && "AudioWorkletNode" in window;
  }

  /** Ask for the microphone; `heard` gets what it hears, an ArrayBuffer every 20 ms. Throws a `DOMException`. */
  static async open(heard) {
    const sound = new Sound();
    sound.#stream = await navigator.mediaDevices.getUserMedia({ audio: WANTED });
    try {
      sound.#context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
      await sound.#context.audioWorklet.addModule(new URL("sound-worklet.js", import.meta.url));
      await sound.#context.resume();
      sound.#node = new AudioWorkletNode(sound.#context, "duologue-sound", { outputChannelCount: [1] });
      sound.#node.port.onmessage = ({ data }) => heard(data);
      sound.#context.createMediaStreamSource(sound.#stream).connect(sound.#node).connect(sound.#context.destination);
    } catch (error) {
      sound.close();
      throw error;
    }
    return sound;
  }

  /** Play a piece behind those before. */
  play(buffer) {
    this.#node.port.postMessage(buffer, [buffer]);
  }

  /** Drop what has not been played. */
  cut() {
    this.#node.port.postMessage("cut");
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
  }
}
