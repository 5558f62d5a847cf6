package endpoint

import (
	"coapproxy/exchange"
	"coapproxy/wire"
)

// sealed returns the message to send in place of m; s may be nil.
func sealed(s exchange.Sealing, m *wire.Message) (*wire.Message, error) {
	if s == nil {
		return m, nil
	}
	code, options, payload, err := s.Seal(m.Code, m.Options, m.Payload)
	if err != nil {
		return nil, err
	}
	return &wire.Message{Type: m.Type, Code: code, Options: options, Payload: payload}, nil
}

// opened returns the response inside m, which keeps its Type, Message ID and Token.
func opened(s exchange.Sealing, m *wire.Message) (*wire.Message, bool) {
	code, options, payload, ok := s.Open(m.Code, m.Options, m.Payload)
	if !ok {
		return nil, false
	}
	return &wire.Message{Type: m.Type, ID: m.ID, Token: m.Token, Code: code, Options: options, Payload: payload}, true
}
