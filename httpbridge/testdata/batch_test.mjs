// Prints the responses of a batch as lines of JSON, with the parser of docs/batch.mjs. Arguments: the URL, and
// header fields as JSON.
import {responses} from "../../docs/batch.mjs";

const [url, fields] = process.argv.slice(2);
const batch = await fetch(url, {headers: JSON.parse(fields)});
for await (const r of responses(batch)) {
  const body = Buffer.from(await r.arrayBuffer()).toString("latin1");
  process.stdout.write(JSON.stringify({server: r.server ?? "", status: r.status, body}) + "\n");
}
