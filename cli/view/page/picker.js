// Choosing an image: by category, by a part of its name, or a file.

import { imageAddress, upload } from "./api.js";
import { button, byId, complain, fill, make, options, say } from "./dom.js";

const SHOWN_AT_ONCE = 60;

/** The dialog. view: whose images. */
export class Picker {
  constructor(view) {
    this.view = view;
    this.dialog = byId("picker");
    this.search = byId("picker-search");
    this.category = byId("picker-category");
    this.list = byId("picker-list");
    fill(this.category, ...options([["", "all categories"], ...view.state.categories.map((own) => [own, own])], ""));
    this.search.addEventListener("input", () => this.#fill());
    this.category.addEventListener("change", () => this.#fill());
    const file = byId("picker-file");
    file.parentElement.hidden = !view.state.can_upload;
    file.addEventListener("change", () => file.files[0] && this.#take(file.files[0]));
  }

  /** Let somebody choose. title: of what. image: the present one. use: takes the row. */
  open(title, image, use) {
    byId("picker-title").textContent = title;
    this.use = use;
    this.present = image;
    this.category.value = this.view.state.categories.includes(image?.category) ? image.category : "";
    this.search.value = "";
    this.#fill();
    this.dialog.showModal();
    this.search.focus();
    this.list.querySelector("[aria-current]")?.scrollIntoView({ block: "center" });
  }

  /** Images that fit what is typed; those without maps are the last. */
  #fitting() {
    const words = this.search.value.toLowerCase().split(/\s+/);
    const category = this.category.value;
    const isNamed = ({ id }) => words.every((word) => id.toLowerCase().includes(word));
    const fits = (image) => (category === "" || image.category === category) && isNamed(image);
    const fitting = this.view.state.images.filter(fits);
    return [...fitting.filter((image) => image.maps !== 0), ...fitting.filter((image) => image.maps === 0)];
  }

  #fill(shown = SHOWN_AT_ONCE) {
    const images = this.#fitting();
    const more = images.length - shown;
    const rest = button(
      `Show more of ${images.length}`,
      () => this.#fill(shown + 4 * SHOWN_AT_ONCE),
      { class: "plain more" },
    );
    fill(this.list, ...images.slice(0, shown).map((image) => this.#choice(image)), more > 0 && rest);
    byId("picker-count").textContent = images.length === 1 ? "1 image" : `${images.length} images`;
  }

  #choice(image) {
    const note = image.maps === 0 ? make("span", { class: "words" }, "no maps") : null;
    const photo = make("img", { src: imageAddress(image.row, 224), alt: "", loading: "lazy", width: 96, height: 96 });
    const name = make("span", {}, image.id.slice(image.id.indexOf("/") + 1));
    const isPresent = image.row === this.present?.row;
    return make(
      "button",
      {
        type: "button",
        class: "choice",
        title: image.id,
        "aria-label": image.id,
        "aria-current": isPresent ? "true" : null,
        onclick: () => this.#choose(image.row),
      },
      photo,
      name,
      note,
    );
  }

  #choose(row) {
    this.dialog.close();
    this.use(row);
  }

  async #take(file) {
    const row = await this.hand(file);
    byId("picker-file").value = "";
    if (row !== null) this.#choose(row);
  }

  /** Hand a file over, as of the category of what is looked at; its row, or null where that is refused. */
  async hand(file) {
    say(`Reading ${file.name} …`);
    try {
      const image = await upload(file, this.category.value || (this.view.sourceImage?.category ?? ""));
      this.view.add(image);
      say(`${file.name} is here as ${image.id}. Its maps are made when they are first needed.`);
      return image.row;
    } catch (error) {
      complain(error);
      return null;
    }
  }
}
