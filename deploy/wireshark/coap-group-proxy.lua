-- Shows the options of draft-ietf-core-groupcomm-proxy in CoAP over UDP and DTLS, which Wireshark's own dissector
-- shows as unknown: Multicast-Timeout (2), Group-ETag (24), Reply-From (248), and Response-Forwarding (96) of the
-- texts before 2024.
--
-- Put it into Wireshark's folder of personal Lua plug-ins (Help, About, Folders), or:
--   tshark -X lua_script:coap-group-proxy.lua -r capture.pcap -Y coap_group
--
-- Fields to filter by: coap_group.multicast_timeout, coap_group.reply_from, coap_group.group_etag,
-- coap_group.response_forwarding.

local proto = Proto("coap_group", "CoAP group proxying")

-- IANA has assigned none of these numbers yet.
proto.prefs.timeout = Pref.uint("Multicast-Timeout", 2, "option number")
proto.prefs.group_etag = Pref.uint("Group-ETag", 24, "option number")
proto.prefs.reply_from = Pref.uint("Reply-From", 248, "option number")
proto.prefs.forwarding = Pref.uint("Response-Forwarding", 96, "option number")

local fields = {
  timeout = ProtoField.uint32("coap_group.multicast_timeout", "Multicast-Timeout", base.DEC, nil, nil, "seconds that the client waits"),
  etag = ProtoField.bytes("coap_group.group_etag", "Group-ETag"),
  from = ProtoField.string("coap_group.reply_from", "Reply-From"),
  follow = ProtoField.string("coap_group.reply_from.follow_up", "Follow-up", "what a follow-up request carries in its Uri-* options"),
  forwarding = ProtoField.string("coap_group.response_forwarding", "Response-Forwarding"),
}
proto.fields = {fields.timeout, fields.etag, fields.from, fields.follow, fields.forwarding}
local malformed = ProtoExpert.new("coap_group.malformed", "Malformed option value", expert.group.MALFORMED, expert.severity.WARN)
proto.experts = {malformed}

local coap_version = Field.new("coap.version")

local schemes = {[0] = "coap", "coaps", "http", "https", [6] = "coap+tcp", [7] = "coaps+tcp", [24] = "coap+ws", [25] = "coaps+ws"}
local transports = {"coap", "coaps", "coap+tcp", "coaps+tcp", "coap+ws", "coaps+ws"}

-- item reads one CBOR item of the few kinds that occur here: a number, {bytes=}, {text=}, {array}, "null", "true" or
-- "false"; tagged ones are {tag=, item=}. It returns the item and the position behind it, or nothing.
local function item(range, at, depth)
  if depth > 4 or at >= range:len() then return end
  local head = range(at, 1):uint()
  local major, info = math.floor(head / 32), head % 32
  at = at + 1
  local n = info
  if info >= 24 then
    local size = ({[24] = 1, [25] = 2, [26] = 4})[info]
    if not size or at + size > range:len() then return end
    n = range(at, size):uint()
    at = at + size
  end
  if major == 0 then return n, at end
  if major == 1 then return -1 - n, at end
  if major == 2 or major == 3 then
    if at + n > range:len() then return end
    if n == 0 then return major == 2 and {bytes = nil, length = 0} or {text = ""}, at end
    local value = range(at, n)
    return major == 2 and {bytes = value, length = n} or {text = value:string()}, at + n
  end
  if major == 4 then
    local array = {count = n}
    for i = 1, n do
      array[i], at = item(range, at, depth + 1)
      if array[i] == nil then return end
    end
    return array, at
  end
  if major == 6 then
    local inner
    inner, at = item(range, at, depth + 1)
    if inner == nil then return end
    return {tag = n, item = inner}, at
  end
  return ({[20] = "false", [21] = "true", [22] = "null"})[info], at
end

local function address(bytes)
  if bytes:len() == 4 then return tostring(bytes:ipv4()) end
  if bytes:len() == 16 then return "[" .. tostring(bytes:ipv6()) .. "]" end
end

-- host is the host and port of a CRI authority.
local function host(authority)
  local names, port = {}, nil
  for i = 1, authority.count do
    local part = authority[i]
    if type(part) == "number" then
      port = part
    elseif part.bytes then
      names[#names + 1] = address(part.bytes)
    elseif part.text then
      if #names == 1 and names[1]:sub(1, 1) == "[" then
        names[1] = names[1]:sub(1, -2) .. "%25" .. part.text .. "]" -- a zone
      else
        names[#names + 1] = part.text
      end
    end
  end
  if #names == 0 then return end
  return table.concat(names, ".") .. (port and ":" .. port or "")
end

local function path(array)
  local segments = {}
  for i = 1, array.count do segments[i] = "/" .. (array[i].text or "?") end
  return table.concat(segments)
end

-- reply_from returns the server and what a follow-up to it carries.
local function reply_from(range)
  local value, behind = item(range, 0, 0) -- a second item follows the first, without an array around them
  if type(value) ~= "table" or not value.count then return end
  local scheme, authority = value[1], value[2]
  if type(scheme) ~= "number" or type(authority) ~= "table" or not authority.count then return end
  local name, server = schemes[-1 - scheme], host(authority)
  if not name or not server then return end
  local ref
  if behind < range:len() then ref = item(range, behind, 0) end
  local follow
  if type(ref) == "table" and ref.count then
    follow = ""
    for i = 1, ref.count do
      local part = ref[i]
      if type(part) == "table" and part.count then
        if i == 2 and ref[1] == "null" then follow = follow .. "//" .. (host(part) or "") else follow = follow .. path(part) end
      end
    end
  end
  return name .. "://" .. server, follow
end

local function response_forwarding(range)
  local value = item(range, 0, 0)
  if type(value) ~= "table" or not value.count then return end
  local tp, server, port = transports[value[1]], value[2], value[3]
  if not tp or type(server) ~= "table" or server.tag ~= 260 or not server.item.bytes then return end
  local text = tp .. "://" .. (address(server.item.bytes) or "?")
  if port == "null" then return text .. " (the port of the group)" end
  if type(port) == "number" and port >= 0 then return text .. ":" .. port end
  return text
end

local function show(tree, number, value, at)
  local prefs = proto.prefs
  local text, follow
  if number == prefs.timeout then
    if value and value:len() > 4 then
      tree:add(at, "Multicast-Timeout"):add_proto_expert_info(malformed)
    else
      tree:add(fields.timeout, value or at, value and value:uint() or 0):append_text(value == nil and " (no responses wanted, or how long is to be said)" or " s")
    end
    return
  elseif number == prefs.group_etag and value then
    tree:add(fields.etag, value)
    return
  elseif number == prefs.reply_from then
    if value then text, follow = reply_from(value) end
    local node = tree:add(fields.from, value or at, text or "")
    if follow then node:add(fields.follow, value, follow) end
    if not text then node:add_proto_expert_info(malformed) end
    return
  elseif number == prefs.forwarding and value then
    text = response_forwarding(value)
    if text then tree:add(fields.forwarding, value, text) end -- 96 may be somebody else's
  end
end

local function ours(number)
  local prefs = proto.prefs
  return number == prefs.timeout or number == prefs.group_etag or number == prefs.reply_from or number == prefs.forwarding
end

-- options calls back for every option of a CoAP message.
local function options(message, each)
  local at = 4 + message(0, 1):bitfield(4, 4)
  local number = 0
  while at < message:len() and message(at, 1):uint() ~= 0xff do
    local begin = at
    local delta, length = message(at, 1):bitfield(0, 4), message(at, 1):bitfield(4, 4)
    at = at + 1
    local function extended(n)
      if n == 13 then
        if at + 1 > message:len() then return end
        at = at + 1
        return message(at - 1, 1):uint() + 13
      elseif n == 14 then
        if at + 2 > message:len() then return end
        at = at + 2
        return message(at - 2, 2):uint() + 269
      elseif n < 13 then
        return n
      end
    end
    delta = extended(delta)
    length = delta and extended(length)
    if not length or at + length > message:len() then return end
    number = number + delta
    each(number, length > 0 and message(at, length) or nil, message(begin, at + length - begin))
    at = at + length
  end
end

function proto.dissector(_, _, root)
  for _, version in ipairs({coap_version()}) do
    local message = version.source(version.offset) -- of the datagram, or of what DTLS protected
    local tree
    if message:len() >= 4 and message(0, 1):bitfield(0, 2) == 1 then
      options(message, function(number, value, at)
        if not ours(number) then return end
        tree = tree or root:add(proto, at, "CoAP group proxying")
        show(tree, number, value, at)
      end)
    end
  end
end

register_postdissector(proto)
