package wire

import "strings"

// AppendProxyCRI appends the value of a Proxy-Cri option for a target without
// userinfo (HREF §8.2.1). A port that is the scheme's default is left out. ok is
// false where the value would be longer than the option can be (FP-3); buf is
// returned as it was then.
func (u URI) AppendProxyCRI(buf []byte) (_ []byte, ok bool) {
	c := CRI{Scheme: u.Scheme, Authority: Authority{Kind: AuthorityHost, Addr: u.Addr}}
	if !u.Addr.IsValid() {
		for label := range strings.SplitSeq(u.Host, ".") {
			c.Authority.Labels = append(c.Authority.Labels, PlainText(label))
		}
	}
	if standard, known := DefaultPort(u.Scheme); u.Port != 0 && (!known || u.Port != standard) {
		c.Authority.Port, c.Authority.HasPort = u.Port, true
	}
	for _, segment := range u.Path {
		c.Path = append(c.Path, PlainText(segment))
	}
	for _, item := range u.Query {
		c.Query = append(c.Query, PlainText(item))
	}
	value := c.Append(buf)
	if len(value)-len(buf) > maxProxyCRI {
		return buf, false
	}
	return value, true
}
