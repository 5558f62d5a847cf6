// Sends one request through a proxy with the npm package coap and prints every
// response as a line of JSON.
//
//   node group.js PROXY-HOST PROXY-PORT METHOD URI SECONDS [PAYLOAD]
//
// SECONDS is the Multicast-Timeout; below 0 the request is one to a single server.
'use strict'
const coap = require('coap')

const [host, port, method, uri, timeout, payload] = process.argv.slice(2)
const seconds = Number(timeout)
const many = seconds >= 0

const request = coap.request({
  host,
  port: Number(port),
  method,
  proxyUri: uri,
  multicast: many,
  multicastTimeout: seconds * 1000 + 300,
  confirmable: !many
})
if (many) {
  request.setOption('2', Buffer.from(seconds > 0 ? [seconds] : []))
}
request.on('response', (response) => {
  const options = {}
  for (const { name, value } of response.options) {
    options[name] = Buffer.isBuffer(value) ? value.toString('hex') : String(value)
  }
  console.log(JSON.stringify({ code: response.code, payload: response.payload.toString(), options }))
})
request.on('error', (err) => {
  console.error(err)
  process.exit(1)
})
request.end(payload)
