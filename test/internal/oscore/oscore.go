// Package oscore is the tests' own, plain OSCORE (RFC 8613): one context, AES-CCM
// with a nonce of 13 bytes. It shares nothing with the proxy but the standard
// library.
package oscore

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"coapproxy/test/internal/coap"
)

// Option is the number of the OSCORE option.
const Option = 9

// Context is one end of a Security Context. It is used by one goroutine.
type Context struct {
	Sender, Recipient, ID []byte // ID is the ID Context, nil for none
	Sequence              uint64

	algorithm, tag int
	send, receive  cipher.Block
	iv             []byte
}

// Read reads a context file of coapproxy.
func Read(path string) (*Context, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f struct {
		Algorithm    string
		MasterSecret string  `json:"master_secret"`
		MasterSalt   string  `json:"master_salt"`
		IDContext    *string `json:"id_context"`
		SenderID     string  `json:"sender_id"`
		RecipientID  string  `json:"recipient_id"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	unhex := func(s string) []byte {
		b, e := hex.DecodeString(s)
		err = errors.Join(err, e)
		return b
	}
	c := &Context{Sender: unhex(f.SenderID), Recipient: unhex(f.RecipientID)}
	if f.IDContext != nil {
		c.ID = unhex(*f.IDContext)
	}
	secret, salt := unhex(f.MasterSecret), unhex(f.MasterSalt)
	switch f.Algorithm {
	case "AES-CCM-16-64-128":
		c.algorithm, c.tag = 10, 8
	case "AES-CCM-16-128-128":
		c.algorithm, c.tag = 30, 16
	default:
		return nil, fmt.Errorf("algorithm %q", f.Algorithm)
	}
	if err != nil {
		return nil, err
	}
	derive := func(id []byte, kind string, n int) []byte { // RFC 8613 §3.2.1
		info := append([]byte{0x85}, bstr(id)...)
		if c.ID == nil {
			info = append(info, 0xf6)
		} else {
			info = append(info, bstr(c.ID)...)
		}
		info = append(info, number(c.algorithm)...)
		info = append(append(info, byte(0x60+len(kind))), kind...)
		info = append(info, byte(n))
		key, e := hkdf.Key(sha256.New, secret, salt, string(info), n)
		err = errors.Join(err, e)
		return key
	}
	block := func(key []byte) cipher.Block {
		b, e := aes.NewCipher(key)
		err = errors.Join(err, e)
		return b
	}
	c.send, c.receive, c.iv = block(derive(c.Sender, "Key", 16)), block(derive(c.Recipient, "Key", 16)), derive(nil, "IV", 13)
	return c, err
}

func number(n int) []byte {
	if n < 24 {
		return []byte{byte(n)}
	}
	return []byte{24, byte(n)}
}

func bstr(b []byte) []byte {
	if len(b) < 24 {
		return append([]byte{0x40 | byte(len(b))}, b...)
	}
	return append([]byte{0x58, byte(len(b))}, b...)
}

// Request is what the responses to a request are read with.
type Request struct {
	PartialIV []byte
	nonce     []byte
	aad       []byte
}

// Protect returns the request in its layer: the options named outside go there,
// all others inside.
func (c *Context) Protect(m *coap.Message, outside ...uint16) (*coap.Message, *Request) {
	partialIV := minimal(c.Sequence)
	c.Sequence++
	return c.ProtectWith(m, partialIV, outside...)
}

// ProtectWith is Protect with a Partial IV of the caller's choice.
func (c *Context) ProtectWith(m *coap.Message, partialIV []byte, outside ...uint16) (*coap.Message, *Request) {
	r := &Request{PartialIV: partialIV, nonce: c.nonce(c.Sender, partialIV), aad: c.aad(c.Sender, partialIV)}
	inner := coap.Message{Code: m.Code, Payload: m.Payload}
	out := &coap.Message{Type: m.Type, Code: coap.POST, Token: m.Token}
	for _, o := range m.Options {
		if bytes.IndexByte(low(outside), byte(o.Number)) >= 0 && o.Number < 256 {
			out.Options = append(out.Options, o)
			continue
		}
		inner.Options = append(inner.Options, o)
		if o.Number == coap.Observe {
			out.Code = coap.FETCH
			out.Options = append(out.Options, o)
		}
	}
	value := []byte{byte(len(partialIV)) | 8}
	if c.ID != nil {
		value[0] |= 16
	}
	value = append(value, partialIV...)
	if c.ID != nil {
		value = append(append(value, byte(len(c.ID))), c.ID...)
	}
	value = append(value, c.Sender...)
	out.Options = append(out.Options, coap.Option{Number: Option, Value: value})
	out.Payload = seal(c.send, c.tag, r.nonce, plaintext(&inner), r.aad)
	return out, r
}

func low(numbers []uint16) []byte {
	var out []byte
	for _, n := range numbers {
		out = append(out, byte(n))
	}
	return out
}

// Open returns the response in a layer and its Partial IV, nil for none.
func (c *Context) Open(r *Request, m *coap.Message) (*coap.Message, []byte, error) {
	o, ok := m.Option(Option)
	if !ok {
		return nil, nil, fmt.Errorf("no OSCORE option in %v", m)
	}
	nonce := r.nonce
	var partialIV []byte
	if len(o.Value) > 0 {
		n := int(o.Value[0] & 7)
		if len(o.Value) < 1+n || o.Value[0]&0xf8 != 0 {
			return nil, nil, fmt.Errorf("OSCORE option %x of a response", o.Value)
		}
		partialIV = o.Value[1 : 1+n]
		nonce = c.nonce(c.Recipient, partialIV)
	}
	text, err := open(c.receive, c.tag, nonce, m.Payload, r.aad)
	if err != nil {
		return nil, partialIV, err
	}
	inner, err := coap.Parse(append([]byte{0x40, text[0], 0, 0}, text[1:]...))
	return inner, partialIV, err
}

// plaintext is the code, options and payload of a message.
func plaintext(m *coap.Message) []byte {
	data := m.Bytes()
	return append([]byte{data[1]}, data[4:]...)
}

func minimal(n uint64) []byte {
	b := []byte{byte(n >> 32), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

// nonce is RFC 8613 §5.2.
func (c *Context) nonce(id, partialIV []byte) []byte {
	n := make([]byte, 13)
	n[0] = byte(len(id))
	copy(n[8-len(id):8], id)
	copy(n[13-len(partialIV):], partialIV)
	subtle.XORBytes(n, n, c.iv)
	return n
}

// aad is RFC 8613 §5.4.
func (c *Context) aad(kid, partialIV []byte) []byte {
	external := append([]byte{0x85, 1, 0x81}, number(c.algorithm)...)
	external = append(external, bstr(kid)...)
	external = append(external, bstr(partialIV)...)
	external = append(external, 0x40)
	return append(append([]byte{0x83, 0x68}, "Encrypt0\x40"...), bstr(external)...)
}

// seal and open are AES-CCM (RFC 3610) with a length field of two bytes.
func seal(b cipher.Block, tag int, nonce, text, aad []byte) []byte {
	out := counter(b, nonce, text, 1)
	return append(out, counter(b, nonce, mac(b, tag, nonce, text, aad), 0)...)
}

var errTag = errors.New("wrong tag")

func open(b cipher.Block, tag int, nonce, data, aad []byte) ([]byte, error) {
	if len(data) <= tag {
		return nil, errTag
	}
	text := counter(b, nonce, data[:len(data)-tag], 1)
	if !bytes.Equal(counter(b, nonce, mac(b, tag, nonce, text, aad), 0), data[len(data)-tag:]) {
		return nil, errTag
	}
	return text, nil
}

func counter(b cipher.Block, nonce, in []byte, from byte) []byte {
	iv := append(append([]byte{1}, nonce...), 0, from)
	out := make([]byte, len(in))
	cipher.NewCTR(b, iv).XORKeyStream(out, in)
	return out
}

func mac(b cipher.Block, tag int, nonce, text, aad []byte) []byte {
	blocks := append([]byte{0x40 | byte((tag-2)/2)<<3 | 1}, nonce...)
	blocks = append(blocks, byte(len(text)>>8), byte(len(text)), byte(len(aad)>>8), byte(len(aad)))
	for _, part := range [][]byte{aad, text} {
		blocks = append(blocks, part...)
		for len(blocks)%16 != 0 {
			blocks = append(blocks, 0)
		}
	}
	x := make([]byte, 16)
	for ; len(blocks) > 0; blocks = blocks[16:] {
		subtle.XORBytes(x, x, blocks[:16])
		b.Encrypt(x, x)
	}
	return x[:tag]
}
