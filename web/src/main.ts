/** The page: joins the swarm from the browser, shows it, and asks. */

import { dialable, type Kind, kindOf, readLink, readPeersFile, remember, remembered, type Surroundings } from "./net/addresses";
import { join, type Network } from "./net/node";
import { askedOf, promptOf, type Question, type Settings } from "./query/ask";
import { fits } from "./query/pictures";
import { Run } from "./query/run";
import { isOver, modelName, type Session, speed } from "./query/session";
import { absorb, type ModelSeen, NOTHING, type Seen } from "./map/seen";
import { Watch } from "./map/watch";
import { ChatView, type Turn } from "./views/chat";
import { Composer } from "./views/composer";
import { find, setText } from "./views/dom";
import { count, MapView, sinceWhen, whatIsMissing } from "./views/map";
import { RouteView } from "./views/route";
import type { QueryNode, SwarmMap } from "./swarm/wire/swarm_pb";

class Page {
  seen: Seen = NOTHING;
  turns: Turn[] = [];
  run: Run | undefined;
  lost = false;
  avoided: Readonly<Record<string, number>> = {};
  #painting = false;
  #shown: Session | undefined;
  readonly #watch: Watch;
  readonly #chat = new ChatView(find("log"), find("scroller"), find("announcer"));
  readonly #route = new RouteView(find("route"));
  readonly #map = new MapView(find("map"));
  readonly #composer = new Composer({
    ask: (question, settings) => this.ask(question, settings),
    stop: () => this.run?.stop(),
    chosen: () => this.paint(),
  });

  constructor(
    private readonly network: Network,
    private readonly surroundings: Surroundings,
    peers: readonly string[],
  ) {
    this.#watch = new Watch(network, surroundings, peers, {
      map: (map) => this.#onMap(map),
      lost: () => this.#onLost(),
    });
    find("again").addEventListener("click", () => this.clear());
    setInterval(() => this.paint(), 1000);
    this.paint();
  }

  get model(): ModelSeen | undefined {
    return this.seen.models.get(this.#composer.model);
  }

  /** Begin a turn; false: nothing can be asked now, and it was said why. */
  ask(question: Question, settings: Settings): boolean {
    const model = this.model;
    if (model === undefined) {
      this.#composer.complain("Not connected to the swarm yet.");
      return false;
    }
    const nodes = this.#askable(model);
    const converses = nodes.some((node) => node.converses);
    const said = this.turns.map((turn) => ({ ...turn, answer: turn.session.text }));
    const pictures = [...said, question].flatMap((each) => each.pictures);
    if (!fits(pictures)) {
      this.#composer.complain("The pictures of this conversation are too many for one more question: begin a new one.");
      return false;
    }
    const able = nodes.filter((node) => (node.converses || !converses) && (node.sees || pictures.length === 0));
    if (pictures.length > 0 && able.length === 0) {
      this.#composer.complain("No query node of this model looks at pictures: begin a new conversation without.");
      return false;
    }
    const asked = askedOf(model.model.key, promptOf(said, question, converses), settings);
    const run = new Run(this.network, this.surroundings, asked, able, this.avoided, () => this.paint());
    this.run = run;
    const turn: Turn = { ...question, session: run.session };
    this.turns.push(turn);
    this.#shown = undefined;
    find("intro").hidden = true;
    find("again").hidden = false;
    this.#chat.add(turn);
    this.paint();
    return true;
  }

  clear(): void {
    this.run?.stop();
    this.run = undefined;
    this.turns = [];
    this.#chat.clear();
    find("route").hidden = true;
    find("intro").hidden = false;
    find("again").hidden = true;
    find("prompt").focus();
    this.paint();
  }

  /** Say goodbye: over WebRTC a tab that is closed says nothing by itself. */
  leave(): void {
    this.#watch.end();
    this.run?.stop();
    this.network.close();
  }

  #askable({ nodes }: ModelSeen): QueryNode[] {
    return nodes.filter((node) => dialable(node.edges, this.surroundings).length > 0);
  }

  #onMap(map: SwarmMap): void {
    this.lost = false;
    this.seen = absorb(this.seen, map, Date.now());
    const edges = map.nodes.flatMap((node) => node.edges);
    this.#watch.meet(edges);
    if (edges.length > 0) remember(edges);
    const asked = this.run?.session.asked;
    const model = asked && this.seen.models.get(asked.model);
    if (model !== undefined) {
      const chats = asked?.prompt.case === "messages";
      const shows = this.turns.some((turn) => turn.pictures.length > 0);
      this.run?.meet(this.#askable(model).filter((node) => (!chats || node.converses) && (!shows || node.sees)));
    }
    this.paint();
  }

  #onLost(): void {
    this.lost = true;
    this.paint();
  }

  /** Once a frame, however much has come. A hidden page is painted, too: its title and announcements are read. */
  paint(): void {
    if (this.#painting) return;
    this.#painting = true;
    const paint = (): void => {
      this.#painting = false;
      this.#paint();
    };
    if (document.hidden) setTimeout(paint, 200);
    else requestAnimationFrame(paint);
  }

  #paint(): void {
    const now = Date.now();
    const models = [...this.seen.models.values()];
    this.#composer.offer(models.map(({ model, nodes }) => ({
      key: model.key,
      name: modelName(model.name),
      note: nodes.length > 0 ? "" : " (nobody answers)",
    })));
    const session = this.run?.session;
    const running = session !== undefined && !isOver(session);
    if (session !== undefined && (running || session !== this.#shown)) {
      const turn = this.turns.at(-1);
      if (turn !== undefined) turn.session = session;
      this.avoided = session.avoided;
      this.#chat.show(session, this.#shown);
      this.#shown = session;
    }
    if (session !== undefined) this.#route.show(session, speed(session));
    this.#composer.run(running);
    const nodes = this.model?.nodes ?? [];
    this.#composer.invite(this.model === undefined || nodes.some((node) => node.converses), nodes.some((node) => node.sees));
    this.#map.show(this.seen, this.model, running ? session : undefined, now);
    this.#banner(now);
  }

  #banner(now: number): void {
    const model = this.model;
    const [state, words] = this.#connection();
    setText(find("connection"), words);
    find("connection").dataset["state"] = state;
    const trouble = state === "lost" ? "No peer of the swarm answers; trying again" : model ? whatIsMissing(model) : "";
    setText(find("trouble-words"), trouble);
    setText(find("trouble-since"), trouble && model && state !== "lost" ? sinceWhen(model, now) : "");
    // Never hidden: what is said in a place that was hidden until now is not read aloud.
    find("trouble").classList.toggle("none", trouble === "");
  }

  #connection(): [string, string] {
    if (this.lost) return ["lost", "Not connected"];
    const model = this.model;
    if (model === undefined) return ["joining", this.seen.at === 0 ? "Joining …" : "Joined; no model is served"];
    const servers = model.servers.filter(({ server, gone }) => gone === undefined && server.state === "online").length;
    return ["joined", `Joined: ${count(servers, "server")}`];
  }
}

/** The peers in the link, those in the file beside the page, and those of an earlier visit. */
async function begin(): Promise<{ peers: string[]; only: Kind[] }> {
  const link = readLink(location.hash);
  let inFile: string[] = [];
  try {
    const response = await fetch("peers.json", { cache: "no-cache" });
    if (response.ok) inFile = readPeersFile(await response.json());
  } catch (error) {
    console.info("no peers.json:", error);
  }
  return { peers: [...link.peers, ...inFile, ...remembered()], only: link.only };
}

const NO_ADDRESS =
  "That is no address that a browser can dial: it begins with /ip4, /ip6 or /dns and ends with /p2p/ and the peer's id.";

/** Without any peer the page can only ask for one. */
function askForPeers(why: string): void {
  setText(find("connection"), "Not connected");
  find("connection").dataset["state"] = "lost";
  setText(find("join-why"), why);
  find("join").hidden = false;
  document.body.dataset["view"] = "join";
  find("join-address").focus();
  find("intro").hidden = true;
  find("join").addEventListener("submit", (event) => {
    event.preventDefault();
    const addresses = find<HTMLInputElement>("join-address").value.split(/[\s,]+/).filter(Boolean);
    const known = addresses.filter((address) => kindOf(address) !== undefined);
    if (known.length === 0) return setText(find("join-why"), NO_ADDRESS);
    location.hash = known.map((address) => `peer=${address}`).join("&");
  });
}

function showViews(): void {
  const buttons = [...document.querySelectorAll<HTMLButtonElement>("[data-show]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      document.body.dataset["view"] = button.dataset["show"] ?? "chat";
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
    });
  }
}

async function start(): Promise<void> {
  showViews();
  addEventListener("hashchange", () => location.reload());
  const { peers, only } = await begin();
  const secure = location.protocol === "https:";
  const surroundings: Surroundings = { secure, webTransport: "WebTransport" in globalThis, only };
  if (dialable(peers, surroundings).length === 0) {
    const none = "This page knows no peer yet.";
    askForPeers(peers.length === 0 ? none : "None of the peers that this page knows can be dialled from this browser.");
    return;
  }
  const page = new Page(await join(), surroundings, peers);
  addEventListener("pagehide", () => page.leave());
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}

start().catch((error: unknown) => {
  console.error(error);
  askForPeers(`This browser cannot join: ${error instanceof Error ? error.message : String(error)}`);
});
