// What the page asks its server. Each request carries the token of the page's address.

const token = new URLSearchParams(location.search).get("token") ?? "";

/** Where an image lies. side: of its longer one in pixels, at most. */
export function imageAddress(row, side = null) {
  const asked = new URLSearchParams({ token, ...(side === null ? {} : { side }) });
  return `/api/image/${encodeURIComponent(row)}?${asked}`;
}

/** The answer to a question in the address; what is null is left out. */
export function get(path, query = {}) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== null && value !== ""));
  return answer(`/api/${path}?${asked}`, {});
}

/** The answer to a question of JSON. */
export function post(path, question) {
  const headers = { "Content-Type": "application/json" };
  return answer(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(question) });
}

/** Hand a picture of something of a category over; the answer is the image that it has become. */
export function upload(file, category) {
  const headers = { "Content-Type": "application/octet-stream" };
  return answer(`/api/upload?${new URLSearchParams({ category })}`, { method: "POST", headers, body: file });
}

async function answer(address, request) {
  const reply = await fetch(address, { ...request, headers: { ...request.headers, "X-Dualsd-Token": token } });
  const found = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(found.error ?? `The server answers with ${reply.status}.`);
  return found;
}

/** Does one piece of work at a time. However often it is woken meanwhile, it is done once more: a drag never queues. */
export class Newest {
  #again = false;
  #busy = false;

  constructor(work) {
    this.work = work;
  }

  async wake() {
    this.#again = true;
    if (this.#busy) return;
    this.#busy = true;
    while (this.#again) {
      this.#again = false;
      await this.work();
    }
    this.#busy = false;
  }
}
