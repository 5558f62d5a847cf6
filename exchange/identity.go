package exchange

import "time"

// Identity is a client the proxy knows: one `clients` entry. It is immutable
// and shared by all exchanges of that client.
type Identity struct {
	// Name of the entry, for logs.
	Name string
	// Authenticated is false for an identification by source network alone,
	// which does not meet REQ2 of the group proxy draft (GP-24).
	Authenticated bool
	// ProveAddress has the client prove its address by Echo before anything large
	// is sent there, though its network is trusted (FP-81).
	ProveAddress bool
	// Dialect is the response option this client understands (GP-127).
	Dialect Dialect
	// PresetTimeout stands in for a missing Multicast-Timeout of a legacy
	// client; 0: none (GP-125, GP-127).
	PresetTimeout time.Duration
	// Delivery says how relayed group responses travel (GP-33).
	Delivery Delivery
	// Permissions is what the access layer attached to this client; other
	// packages do not look inside.
	Permissions any
}

// Delivery is how the responses of a group request travel to a CoAP client
// over UDP (GP-33).
type Delivery struct {
	Type ResponseType
	// Outstanding is the number of confirmable responses that may wait for
	// their ACK at a time, at least 1.
	Outstanding int
	// Queue is how many more responses may wait behind those, or behind Rate.
	Queue int
	// Rate is how many non-confirmable responses per second are sent, Burst how many
	// at once; rate 0: as they come (GC-84).
	Rate  float64
	Burst int
}

// ResponseType is the message type of relayed responses.
type ResponseType uint8

// Same answers a confirmable request with confirmable responses and a
// non-confirmable one with non-confirmable ones.
const (
	Same ResponseType = iota
	Confirmable
	NonConfirmable
)

// Dialect is a generation of the group proxy draft (GP-127).
type Dialect uint8

// Draft07 is Multicast-Timeout and Reply-From, Legacy is the older
// Response-Forwarding, Both sends both response options.
const (
	Draft07 Dialect = iota
	Legacy
	Both
)

// String returns the name used in the configuration.
func (d Dialect) String() string {
	switch d {
	case Legacy:
		return "legacy"
	case Both:
		return "both"
	default:
		return "draft-07"
	}
}
