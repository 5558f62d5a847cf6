// The responses in a multipart/mixed batch, one by one, each as soon as it is there:
//
//   const batch = await fetch("/hc/coap://224.0.1.187/temp", {headers: {"Multicast-Timeout": "5", Prefer: "stream-parts"}});
//   for await (const r of responses(batch)) console.log(r.server, r.status, await r.text());
//
// Each is a fetch Response with one more property, the URI of its server (undefined when the proxy itself speaks).
export async function* responses(batch) {
  const boundary = /boundary="?([^";]+)/.exec(batch.headers.get("Content-Type"))?.[1];
  if (!boundary) return; // 204: nobody answered
  const head = new RegExp(`^(?:\r\n)?--${boundary}\r\n[^]*?\r\n\r\nHTTP/1.1 (\\d+).*\r\n([^]*?)\r\n\r\n`);
  const reader = batch.body.getReader();
  for (let bytes = new Uint8Array(); ; ) {
    const text = new TextDecoder("latin1").decode(bytes); // a character for each byte
    if (text.startsWith(`--${boundary}--`) || text.startsWith(`\r\n--${boundary}--`)) return;
    const part = head.exec(text);
    const fields = new Headers(part?.[2].split("\r\n").map((line) => /^([^:]+): *(.*)$/.exec(line).slice(1)));
    const end = part && part[0].length + Number(fields.get("Content-Length") ?? 0);
    if (part && end <= bytes.length) {
      const status = Number(part[1]);
      const body = [204, 304].includes(status) ? null : bytes.slice(part[0].length, end);
      yield Object.assign(new Response(body, {status, headers: fields}), {server: fields.get("Content-Location") ?? undefined});
      bytes = bytes.slice(end);
      continue;
    }
    const {value, done} = await reader.read();
    if (done) throw new Error("the batch was cut short");
    const longer = new Uint8Array(bytes.length + value.length);
    longer.set(bytes);
    longer.set(value, bytes.length);
    bytes = longer;
  }
}
