package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"unicode/utf8"
)

var (
	errCRIForm     = errors.New("not the structure of a CRI")
	errCRIEmptyRef = errors.New("neither scheme nor authority set")
	errCRITrailing = errors.New("trailing null in a CRI")
	errCRIDiscard  = errors.New("discard value out of range")
	errCRIScheme   = errors.New("malformed scheme name")
	errCRIHost     = errors.New("malformed host in a CRI")
	errCRIPort     = errors.New("port out of range")
	errCRIText     = errors.New("malformed percent-encoded text")
)

// ParseCRI reads a CRI or CRI reference that makes up the whole of data (HREF
// §5.1), with scheme names, absent authorities, userinfo and percent-encoded
// text, but without stand-in items (HREF §7.1). Indefinite lengths, bytes that
// follow, and trailing nulls are errors; a scheme number outside FP-6 is one
// that wraps ErrScheme. Work and memory are linear in len(data).
func ParseCRI(data []byte) (CRI, error) {
	r := cborReader{data: data}
	c, err := r.cri()
	if err == nil {
		err = r.end()
	}
	if err != nil {
		return CRI{}, fmt.Errorf("bad CRI: %w", err)
	}
	return c, nil
}

func (r *cborReader) cri() (c CRI, err error) {
	n, err := r.array()
	if err != nil || n == 0 {
		return c, err
	}
	trailingNull := false
	switch {
	case r.simple(simpleTrue):
		c.Discard = DiscardAll
		n--
	case r.nextIs(cborUint):
		discard, err := r.expect(cborUint)
		if err != nil {
			return c, err
		}
		if discard > maxDiscard {
			return c, errCRIDiscard
		}
		c.Discard = int(discard)
		n--
	default:
		c.Discard = DiscardAll
		if c.Scheme, err = r.criScheme(); err != nil {
			return c, err
		}
		if n--; n > 0 {
			if c.Authority, err = r.criAuthority(); err != nil {
				return c, err
			}
			n--
			trailingNull = c.Authority.Kind == AuthorityNone
		}
		if c.Scheme == "" && c.Authority.Kind == AuthorityNone {
			return c, errCRIEmptyRef // HREF §5.1: discard has to be used
		}
	}
	for i := 0; i < n; i++ {
		trailingNull = r.simple(simpleNull)
		if trailingNull {
			continue
		}
		switch i {
		case 0:
			c.Path, err = r.criTexts()
		case 1:
			c.Query, err = r.criTexts()
		case 2:
			c.Fragment = new(Text)
			*c.Fragment, err = r.criText()
		default:
			err = errCRIForm
		}
		if err != nil {
			return c, err
		}
	}
	if trailingNull {
		return c, errCRITrailing
	}
	return c, nil
}

// criScheme reads a scheme section; "" is null.
func (r *cborReader) criScheme() (string, error) {
	if r.simple(simpleNull) {
		return "", nil
	}
	if r.nextIs(cborText) {
		name, err := r.text()
		if err != nil {
			return "", err
		}
		if scheme, _, ok := cutScheme(name + ":"); !ok || len(scheme) < len(name) || name != lowerASCII(name) {
			return "", errCRIScheme
		}
		return name, nil
	}
	number, err := r.expect(cborNegint)
	if err != nil {
		return "", err
	}
	name, ok := "", false
	if number <= math.MaxUint32 {
		name, ok = SchemeName(uint32(number))
	}
	if !ok {
		return "", ErrScheme
	}
	return name, nil
}

func (r *cborReader) criAuthority() (a Authority, err error) {
	if r.simple(simpleNull) {
		return a, nil
	}
	if r.simple(simpleTrue) {
		a.Kind = AuthorityRootless
		return a, nil
	}
	a.Kind = AuthorityHost
	n, err := r.array()
	if err != nil {
		return a, err
	}
	if n > 1 && r.simple(simpleFalse) {
		a.Userinfo = new(Text)
		if *a.Userinfo, err = r.criText(); err != nil {
			return a, err
		}
		n -= 2
	}
	if n > 0 && r.nextIs(cborBytes) {
		used, err := r.criAddr(&a, n)
		if err != nil {
			return a, err
		}
		n -= used
	} else {
		for ; n > 0 && (r.nextIs(cborText) || r.nextIs(cborArray)); n-- {
			label, err := r.criText()
			if err != nil {
				return a, err
			}
			a.Labels = append(a.Labels, label)
		}
	}
	if n > 0 {
		port, err := r.expect(cborUint)
		if err != nil {
			return a, err
		}
		if port > math.MaxUint16 {
			return a, errCRIPort
		}
		a.Port, a.HasPort = uint16(port), true
		n--
	}
	if n != 0 {
		return a, errCRIForm
	}
	return a, nil
}

// criAddr reads an IP address and, if one of the n items left in the authority,
// its zone. It returns how many items it read.
func (r *cborReader) criAddr(a *Authority, n int) (used int, err error) {
	value, err := r.str(cborBytes)
	if err != nil {
		return 0, err
	}
	var ok bool
	if a.Addr, ok = netip.AddrFromSlice(value); !ok {
		return 0, errCRIHost
	}
	if n < 2 || !r.nextIs(cborText) {
		return 1, nil
	}
	zone, err := r.text()
	if err != nil {
		return 0, err
	}
	if a.Addr.Is4() || checkZone(zone) != "" {
		return 0, errCRIHost
	}
	a.Addr = a.Addr.WithZone(zone)
	return 2, nil
}

// criTexts reads the array of a path or query; the result is never nil.
func (r *cborReader) criTexts() ([]Text, error) {
	n, err := r.array()
	if err != nil {
		return nil, err
	}
	texts := make([]Text, n) // n is bounded by the bytes that are there
	for i := range texts {
		if texts[i], err = r.criText(); err != nil {
			return nil, err
		}
	}
	return texts, nil
}

// criText reads a text-or-pet (HREF §7.2).
func (r *cborReader) criText() (Text, error) {
	if !r.nextIs(cborArray) {
		s, err := r.text()
		return PlainText(s), err
	}
	n, err := r.array()
	if err != nil {
		return nil, err
	}
	text := make(Text, n)
	encoded := false
	for i := range text {
		run := Run{Encoded: r.nextIs(cborBytes)}
		if run.Encoded {
			var value []byte
			value, err = r.str(cborBytes)
			run.Value = string(value)
		} else {
			run.Value, err = r.text()
		}
		if err != nil {
			return nil, err
		}
		if run.Value == "" || i > 0 && run.Encoded == text[i-1].Encoded ||
			run.Encoded && !mustEncode(run.Value) {
			return nil, errCRIText
		}
		encoded = encoded || run.Encoded
		text[i] = run
	}
	if !encoded {
		return nil, errCRIText
	}
	return text, nil
}

// mustEncode reports whether no byte of s could as well be literal text: HREF
// §6.2 asks for a minimum of encoded bytes.
func mustEncode(s string) bool {
	for s != "" {
		r, size := utf8.DecodeRuneInString(s)
		if r < utf8.RuneSelf && unreserved.has(s[0]) || r >= utf8.RuneSelf && size > 1 {
			return false
		}
		s = s[size:]
	}
	return true
}
