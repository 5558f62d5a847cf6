package proxy

import (
	"errors"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
)

// kind is how an exchange began.
type kind uint8

const (
	unicastExchange kind = iota
	groupExchange
	kinds
)

// outcome is what became of an exchange.
type outcome uint8

const (
	silent      outcome = iota // it ended without a response
	answered                   // by a server or the cache: with 2.xx, or to a group request
	clientError                // a server's 4.xx
	serverError                // a server's 5.xx
	refusal                    // the proxy's own error
	canceled                   // the client stopped it, or went away
	outcomes
)

// outcomeOf is the outcome that a response to a unicast request stands for.
func outcomeOf(c codes.Code) outcome {
	switch c >> 5 {
	case 4:
		return clientError
	case 5:
		return serverError
	default:
		return answered
	}
}

// ended is the outcome of an exchange that had the outcome so far when it ended
// with err.
func (so outcome) ended(err error) outcome {
	switch {
	case so != silent:
		return so
	case errors.Is(err, exchange.ErrCanceled):
		return canceled
	case err != nil:
		return refusal
	}
	return silent
}

// LabelValues names the elements of Stats.Exchanges and Stats.Failures.
func (*Stats) LabelValues(metric string) [][]string {
	switch metric {
	case "exchanges_total":
		return [][]string{{"unicast", "group"}, {"silent", "answered", "client_error", "server_error", "refused", "canceled"}}
	case "failures_total":
		var reasons []string
		for i := range exchange.Reasons {
			reasons = append(reasons, exchange.Reason(i).String())
		}
		return [][]string{reasons}
	}
	return nil
}
