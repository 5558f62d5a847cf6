package wire

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// contentFormat is one entry of the registry.
type contentFormat struct {
	number uint16
	name   string
}

// contentFormats are the entries of the IANA registry "CoAP Content-Formats"
// that are in use, ascending by number. A content coding follows the media type
// in parentheses.
var contentFormats = []contentFormat{
	{0, "text/plain; charset=utf-8"},
	{16, `application/cose; cose-type="cose-encrypt0"`},
	{17, `application/cose; cose-type="cose-mac0"`},
	{18, `application/cose; cose-type="cose-sign1"`},
	{19, "application/ace+cbor"},
	{21, "image/gif"},
	{22, "image/jpeg"},
	{23, "image/png"},
	{40, "application/link-format"},
	{41, "application/xml"},
	{42, "application/octet-stream"},
	{47, "application/exi"},
	{50, "application/json"},
	{51, "application/json-patch+json"},
	{52, "application/merge-patch+json"},
	{60, "application/cbor"},
	{61, "application/cwt"},
	{62, "application/multipart-core"},
	{63, "application/cbor-seq"},
	{64, "application/edhoc+cbor-seq"},
	{65, "application/cid-edhoc+cbor-seq"},
	{96, `application/cose; cose-type="cose-encrypt"`},
	{97, `application/cose; cose-type="cose-mac"`},
	{98, `application/cose; cose-type="cose-sign"`},
	{101, "application/cose-key"},
	{102, "application/cose-key-set"},
	{110, "application/senml+json"},
	{111, "application/sensml+json"},
	{112, "application/senml+cbor"},
	{113, "application/sensml+cbor"},
	{114, "application/senml-exi"},
	{115, "application/sensml-exi"},
	{140, "application/yang-data+cbor; id=sid"},
	{256, "application/coap-group+json"},
	{257, "application/concise-problem-details+cbor"},
	{258, "application/swid+cbor"},
	{271, "application/dots+cbor"},
	{272, "application/missing-blocks+cbor-seq"},
	{280, "application/pkcs7-mime; smime-type=server-generated-key"},
	{281, "application/pkcs7-mime; smime-type=certs-only"},
	{284, "application/pkcs8"},
	{285, "application/csrattrs"},
	{286, "application/pkcs10"},
	{287, "application/pkix-cert"},
	{290, "application/aif+cbor"},
	{291, "application/aif+json"},
	{310, "application/senml+xml"},
	{311, "application/sensml+xml"},
	{320, "application/senml-etch+json"},
	{322, "application/senml-etch+cbor"},
	{340, "application/yang-data+cbor"},
	{341, "application/yang-data+cbor; id=name"},
	{432, "application/td+json"},
	{10000, "application/vnd.ocf+cbor"},
	{10001, "application/oscore"},
	{10002, "application/javascript"},
	{11050, "application/json (deflate)"},
	{11060, "application/cbor (deflate)"},
	{11542, "application/vnd.oma.lwm2m+tlv"},
	{11543, "application/vnd.oma.lwm2m+json"},
	{11544, "application/vnd.oma.lwm2m+cbor"},
	{20000, "text/css"},
	{30000, "image/svg+xml"},
}

// ContentFormatName returns the media type of a Content-Format number, with its
// content coding, if it has one, behind in parentheses.
func ContentFormatName(n uint16) (string, bool) {
	i, ok := slices.BinarySearchFunc(contentFormats, n, func(f contentFormat, n uint16) int {
		return int(f.number) - int(n)
	})
	if !ok {
		return "", false
	}
	return contentFormats[i].name, true
}

// ParseContentFormat returns the Content-Format number for a number in decimal,
// registered or not, or for a name as ContentFormatName gives it; letter case
// and spaces do not matter, and "text/plain" alone means 0.
func ParseContentFormat(s string) (uint16, error) {
	if n, err := strconv.ParseUint(s, 10, 16); err == nil {
		return uint16(n), nil
	}
	want := strings.ReplaceAll(s, " ", "")
	if strings.EqualFold(want, "text/plain") {
		return 0, nil
	}
	for _, f := range contentFormats {
		if strings.EqualFold(strings.ReplaceAll(f.name, " ", ""), want) {
			return f.number, nil
		}
	}
	return 0, fmt.Errorf("unknown content format %q", s)
}
