package httpbridge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"math"

	"github.com/fxamacker/cbor/v2"
	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// parsePack reads a pack in the form that the Content-Format tells.
func parsePack(payload []byte, options message.Options) ([]record, error) {
	value, _ := wire.First(options, wire.ContentFormat)
	var records []record
	var err error
	switch format, _ := wire.Uint(value); format {
	case cfSenMLJSON:
		records, err = parseJSONPack(payload)
	case cfSenMLCBOR:
		records, err = parseCBORPack(payload)
	default:
		return nil, errSenMLForm
	}
	if err != nil {
		return nil, err
	}
	if len(records) > maxRecords {
		return nil, errSenMLTooLarge
	}
	for _, r := range records {
		if !r.sane() {
			return nil, errSenMLForm
		}
	}
	return records, nil
}

// sane checks the types of the fields that are understood (RFC 8428 §4.3).
func (r record) sane() bool {
	for field, value := range r {
		ok := true
		switch field {
		case "bn", "bu", "n", "u", "vs":
			_, ok = value.(string)
		case "vb":
			_, ok = value.(bool)
		case "vd":
			_, ok = value.([]byte)
		case "bver", "bt", "bv", "bs", "v", "s", "t", "ut":
			switch n := value.(type) {
			case json.Number:
				_, err := n.Float64()
				ok = err == nil
			case float64:
				ok = !math.IsNaN(n) && !math.IsInf(n, 0) // JSON has no way to write them
			case uint64, int64:
			default:
				ok = false
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

func parseJSONPack(payload []byte) ([]record, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var records []record
	if err := d.Decode(&records); err != nil {
		return nil, errSenMLForm
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errSenMLForm
	}
	for _, r := range records {
		text, ok := r["vd"].(string)
		if !ok {
			continue
		}
		data, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			return nil, errSenMLForm
		}
		r["vd"] = data
	}
	return records, nil
}

func parseCBORPack(payload []byte) ([]record, error) {
	mode, err := cbor.DecOptions{MaxNestedLevels: 8, MaxArrayElements: maxRecords, MaxMapPairs: 256, DupMapKey: cbor.DupMapKeyEnforcedAPF,
		UTF8: cbor.UTF8RejectInvalid}.DecMode()
	if err != nil {
		return nil, err
	}
	var pack []map[any]any
	if err := mode.Unmarshal(payload, &pack); err != nil {
		return nil, errSenMLForm
	}
	records := make([]record, len(pack))
	for i, m := range pack {
		records[i] = make(record, len(m))
		for key, value := range m {
			field, ok := fieldName(key)
			if !ok {
				return nil, errSenMLField
			}
			if tag, ok := value.(cbor.Tag); ok {
				f, ok := decimal(tag.Content)
				if !ok || tag.Number != tagDecimal {
					return nil, errSenMLForm
				}
				value = f
			}
			switch value.(type) {
			case string, bool, []byte, uint64, int64, float64:
			default:
				return nil, errSenMLForm // nothing that JSON could hold
			}
			records[i][field] = value
		}
	}
	return records, nil
}

// tagDecimal marks a decimal fraction.
const tagDecimal = 4

// fieldName is the JSON name of a CBOR label; labels that are not known are of
// extensions that the pack's reader would have to understand or not by their
// number alone.
func fieldName(key any) (string, bool) {
	switch k := key.(type) {
	case string:
		return k, true
	case uint64:
		for name, label := range senMLLabels {
			if label == int64(k) {
				return name, true
			}
		}
	case int64:
		for name, label := range senMLLabels {
			if label == k {
				return name, true
			}
		}
	}
	return "", false
}
