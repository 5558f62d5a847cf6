package exchange

import (
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Sealing protects the messages of one request between a leg and its server: the
// request itself, what ends or renews it, and every response (OH-3, OH-5). Safe
// for concurrent use.
type Sealing interface {
	// Seal returns the parts of the message to send in place of one with the given
	// parts, which are borrowed; the result may refer to them. It is called once
	// for every message, never for its retransmission (OH-42). The error is a
	// *Failure.
	Seal(code codes.Code, options message.Options, payload []byte) (codes.Code, message.Options, []byte, error)
	// Open returns the parts of the response inside one with the given parts.
	// False means that it is to be dropped, while the exchange goes on (OH-45). The
	// code 0.00 marks what is no response yet, but the first piece of one (OH-75): the
	// layer that made the Sealing waits for it as for any other.
	Open(code codes.Code, options message.Options, payload []byte) (codes.Code, message.Options, []byte, bool)
}
