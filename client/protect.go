package client

import (
	"coapproxy/wire"
)

// Protector puts OSCORE round the requests of a Client. Safe for concurrent use.
type Protector interface {
	// Protect returns what is sent in place of the request m, and what reads its
	// responses. m is borrowed.
	Protect(m *wire.Message) (*wire.Message, Opener, error)
	// ProtectStop is Protect for a request that is for the peer alone, not for the
	// server behind it: an Early Stop Request (OH-103).
	ProtectStop(m *wire.Message) (*wire.Message, error)
}

// Opener takes the protection off the responses to one request.
type Opener interface {
	// Open returns the response inside m. protected is false for one that came
	// without the protection it should have: an error of somebody on the way, which
	// anybody can forge. An error means that m is to be dropped (OH-45).
	Open(m *wire.Message) (out *wire.Message, protected bool, err error)
}

// protect makes m what is sent.
func (c *Client) protect(m *wire.Message) (*wire.Message, Opener, error) {
	if c.config.Protector == nil {
		return m, nil, nil
	}
	sealed, open, err := c.config.Protector.Protect(m)
	if err != nil {
		return nil, nil, err
	}
	sealed.Type = m.Type
	return sealed, open, nil
}

// protectTold is protect for a message whose response nobody waits for: an Early
// Stop Request, which has no path and no target, or a deregistration.
func (c *Client) protectTold(m *wire.Message) (*wire.Message, error) {
	if c.config.Protector == nil || !wire.Has(m.Options, c.config.Numbers.MulticastTimeout) {
		sealed, _, err := c.protect(m)
		return sealed, err
	}
	sealed, err := c.config.Protector.ProtectStop(m)
	if err != nil {
		return nil, err
	}
	sealed.Type = m.Type
	return sealed, nil
}
