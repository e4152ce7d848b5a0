/** The pictures that go with the next question: chosen, dropped or pasted. */

import { type Picture, pictureOf } from "../query/pictures";
import { find, h } from "./dom";

const MOST = 4;

export class Tray {
  readonly #button = find<HTMLButtonElement>("show-picture");
  readonly #input = find<HTMLInputElement>("picture-file");
  readonly #list = find("pictures");
  #pictures: Picture[] = [];

  constructor(private readonly complain: (words: string) => void) {
    this.#button.addEventListener("click", () => this.#input.click());
    this.#input.addEventListener("change", () => {
      void this.#take([...(this.#input.files ?? [])]);
      this.#input.value = "";
    });
    const area = document.documentElement;
    area.addEventListener("dragover", (event) => {
      // A file that a page does not take would be opened in its place.
      if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
    });
    area.addEventListener("drop", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      void this.#take([...event.dataTransfer.files]);
    });
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length === 0) return;
      event.preventDefault();
      void this.#take(files);
    });
  }

  get pictures(): readonly Picture[] {
    return this.#pictures;
  }

  /** Whether the model sees. Pictures that are there already stay: the user may choose another model again. */
  offer(sees: boolean): void {
    this.#button.hidden = !sees;
  }

  clear(): void {
    this.#pictures = [];
    this.#show();
  }

  async #take(files: readonly File[]): Promise<void> {
    if (this.#button.hidden) return this.complain("This model does not look at pictures.");
    this.complain("");
    for (const file of files) {
      if (this.#pictures.length >= MOST) return this.complain(`At most ${MOST} pictures go with a question.`);
      try {
        this.#pictures = [...this.#pictures, await pictureOf(file)];
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        this.complain(error.message);
      }
    }
    this.#show();
  }

  #show(): void {
    this.#list.replaceChildren(...this.#pictures.map((picture) => {
      const leave = (): void => {
        this.#pictures = this.#pictures.filter((each) => each !== picture);
        this.#show();
        find("prompt").focus();
      };
      const words = `Leave out ${picture.name}`;
      const cross = h("button", { type: "button", class: "quiet", title: words, "aria-label": words, onclick: leave }, "×");
      return h("li", {}, thumbnail(picture), cross);
    }));
  }
}

export function thumbnail({ name, url }: Picture): HTMLImageElement {
  return h("img", { src: url, alt: name, class: "thumbnail" });
}
