import { describe, expect, it } from "vitest";
import { byPeer, dialable, kindOf, readLink, readPeersFile, type Surroundings } from "../src/net/addresses";

const WEBRTC = "/ip4/1.2.3.4/udp/31338/webrtc-direct/certhash/uEiA/p2p/12D3KooWA";
const WEBTRANSPORT = "/ip4/1.2.3.4/udp/31339/quic-v1/webtransport/certhash/uEiA/certhash/uEiB/p2p/12D3KooWA";
const WS = "/ip4/1.2.3.4/tcp/31338/ws/p2p/12D3KooWB";
const WSS = "/dns4/peer.example/tcp/443/tls/ws/p2p/12D3KooWC";
const TCP = "/ip4/1.2.3.4/tcp/31337/p2p/12D3KooWD";
const around: Surroundings = { secure: false, webTransport: true, only: [] };

describe("addresses", () => {
  it("are of the kinds that browsers dial, or not", () => {
    expect([WEBRTC, WEBTRANSPORT, WS, WSS, TCP, "", "/ws", "nonsense"].map(kindOf)).toEqual([
      "webrtc-direct",
      "webtransport",
      "ws",
      "ws",
      ...[undefined, undefined, undefined, undefined],
    ]);
  });

  it("are dialled as the page may and the browser can", () => {
    const all = [WS, WSS, TCP, WEBRTC, WEBTRANSPORT];
    expect(dialable(all, around)).toEqual([WEBTRANSPORT, WEBRTC, WS, WSS]);
    expect(dialable(all, { ...around, secure: true })).toEqual([WEBTRANSPORT, WEBRTC, WSS]);
    expect(dialable(all, { ...around, webTransport: false })).toEqual([WEBRTC, WS, WSS]);
    expect(dialable(all, { ...around, only: ["webrtc-direct"] })).toEqual([WEBRTC]);
  });

  it("come in links, several and encoded, and what is none is left out", () => {
    const link = `#peer=${WEBRTC}&peer=${encodeURIComponent(WS)}&peer=javascript:alert(1)&via=webrtc-direct,ftp`;
    expect(readLink(link)).toEqual({ peers: [WEBRTC, WS], only: ["webrtc-direct"] });
    expect(readLink("")).toEqual({ peers: [], only: [] });
  });

  it("come in peers.json, whatever else that may hold", () => {
    expect(readPeersFile({ peers: [WEBRTC, 7, null, "x", TCP] })).toEqual([WEBRTC]);
    for (const content of [null, 7, "x", [], {}, { peers: "x" }]) expect(readPeersFile(content)).toEqual([]);
  });

  it("belong to peers", () => {
    expect([...byPeer([WEBRTC, WS, WEBTRANSPORT])]).toEqual([
      ["12D3KooWA", [WEBRTC, WEBTRANSPORT]],
      ["12D3KooWB", [WS]],
    ]);
  });
});
