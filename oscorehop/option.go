package oscorehop

import (
	"bytes"
	"errors"

	"coapproxy/wire"
)

// Option is the value of an OSCORE option (OC-14). For each field nil means
// absent, which is not the same as empty.
type Option struct {
	PartialIV  []byte // 1 to 5 bytes
	KIDContext []byte // at most 255 bytes
	KID        []byte
	// Group marks the group mode of Group OSCORE (OC-81): the message is never
	// for a context of this package (OH-22).
	Group bool
}

// Flag bits of the first byte (OC-14). Bit 0x80 announces a second flag byte
// (KUDOS), bit 0x40 is not assigned.
const (
	flagPartialIV  = 0x07
	flagKID        = 0x08
	flagKIDContext = 0x10
	flagGroup      = 0x20
	flagReserved   = 0xc0
)

var (
	errFlags       = errors.New("reserved flag bit")
	errZeroFlags   = errors.New("flag byte of zero in an option that must be empty")
	errIVLength    = errors.New("reserved length of the Partial IV")
	errTruncated   = errors.New("option truncated")
	errLeftover    = errors.New("bytes after the last field")
	errNotShortest = errors.New("partial IV with leading zeros")
	errFieldLength = errors.New("field too long for the OSCORE option")
)

// ParseOption reads the value of an OSCORE option. The fields alias it. An error
// means that the message is malformed; it is not a *[VerifyError] yet.
func ParseOption(value []byte) (Option, error) {
	var o Option
	if len(value) == 0 {
		return o, nil
	}
	flags, rest := value[0], value[1:]
	n := int(flags & flagPartialIV)
	switch {
	case flags&flagReserved != 0:
		return Option{}, errFlags
	case flags == 0:
		return Option{}, errZeroFlags
	case n > maxPartialIV:
		return Option{}, errIVLength
	case len(rest) < n:
		return Option{}, errTruncated
	}
	o.Group = flags&flagGroup != 0
	if n > 0 {
		o.PartialIV, rest = rest[:n:n], rest[n:]
		if n > 1 && o.PartialIV[0] == 0 { // OC-15
			return Option{}, errNotShortest
		}
	}
	if flags&flagKIDContext != 0 {
		if len(rest) == 0 || len(rest)-1 < int(rest[0]) {
			return Option{}, errTruncated
		}
		end := 1 + int(rest[0])
		o.KIDContext, rest = rest[1:end:end], rest[end:]
	}
	if flags&flagKID != 0 {
		o.KID, rest = rest[:len(rest):len(rest)], nil
	}
	if len(rest) > 0 {
		return Option{}, errLeftover
	}
	return o, nil
}

// Append appends the option value to buf; nothing at all when no field is
// present (OC-14). On an error, a field that is too long, buf is returned as it
// was.
func (o Option) Append(buf []byte) ([]byte, error) {
	// 255 bytes is the longest value of the option.
	if len(o.PartialIV) > maxPartialIV || len(o.KIDContext) > maxIDContext ||
		2+len(o.PartialIV)+len(o.KIDContext)+len(o.KID) > 255 {
		return buf, errFieldLength
	}
	flags := byte(len(o.PartialIV))
	if o.KIDContext != nil {
		flags |= flagKIDContext
	}
	if o.KID != nil {
		flags |= flagKID
	}
	if o.Group {
		flags |= flagGroup
	}
	if flags == 0 {
		return buf, nil
	}
	buf = append(buf, flags)
	buf = append(buf, o.PartialIV...)
	if o.KIDContext != nil {
		buf = append(buf, byte(len(o.KIDContext)))
		buf = append(buf, o.KIDContext...)
	}
	return append(buf, o.KID...), nil
}

var (
	errNoOption   = errors.New("no OSCORE option")
	errTwoOptions = errors.New("more than one OSCORE option")
	errNoPayload  = errors.New("OSCORE option without a payload")
	errNoKID      = errors.New("request without kid")
	errNoIV       = errors.New("request without Partial IV")
)

// optionOf finds and reads the OSCORE option of a protected message. Errors are
// *[VerifyError] with reason Malformed.
func optionOf(m Message) (Option, error) {
	var value []byte
	found := 0
	for v := range wire.All(m.Options, wire.OSCORE) {
		value = v
		found++
	}
	switch {
	case found == 0:
		return Option{}, malformed(errNoOption)
	case found > 1:
		return Option{}, malformed(errTwoOptions)
	case len(m.Payload) == 0:
		return Option{}, malformed(errNoPayload) // OC-14
	}
	o, err := ParseOption(value)
	if err != nil {
		return Option{}, malformed(err)
	}
	return o, nil
}

// RequestOption reads the OSCORE option of a protected request. Errors are
// *[VerifyError] with reason [Malformed] (OH-50). The fields alias the message.
func RequestOption(m Message) (Option, error) {
	o, err := optionOf(m)
	switch {
	case err != nil:
		return Option{}, err
	case o.KID == nil: // OC-15
		return Option{}, malformed(errNoKID)
	case o.PartialIV == nil: // OC-15
		return Option{}, malformed(errNoIV)
	}
	return o, nil
}

// responseOption reads the option of a response to this endpoint. Neither kid
// nor kid context is needed there; a kid must be the peer's.
func responseOption(m Message, peer []byte) (Option, error) {
	o, err := optionOf(m)
	switch {
	case err != nil:
		return Option{}, err
	case o.Group:
		return Option{}, malformed(errFlags) // OC-14: not supported in this context
	case o.KID != nil && !bytes.Equal(o.KID, peer):
		return Option{}, &VerifyError{Reason: NoContext}
	}
	return o, nil
}
