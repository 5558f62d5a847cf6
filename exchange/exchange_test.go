package exchange

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// byteOptions are options whose values are parts of one buffer, as those of a
// received message are.
func byteOptions(buffer []byte) message.Options {
	return message.Options{{ID: 1, Value: buffer[0:2]}, {ID: 11, Value: buffer[2:2]}, {ID: 11, Value: buffer[2:5]}, {ID: 12, Value: nil}}
}

func TestCloneOptionsOwnsItsBytes(t *testing.T) {
	require.Nil(t, CloneOptions(nil))
	require.Equal(t, message.Options{}, CloneOptions(message.Options{}))

	buffer := []byte("abcde")
	options := byteOptions(buffer)
	clone := CloneOptions(options)
	clear(buffer)
	options[0].ID = 99
	want := byteOptions([]byte("abcde"))
	require.Empty(t, cmp.Diff(want, clone, cmpopts.EquateEmpty()))

	// Appending to a value must not run into the next one.
	_ = append(clone[0].Value, 'X', 'Y')
	require.Empty(t, cmp.Diff(want, clone, cmpopts.EquateEmpty()))
}

func TestCloneOptionsAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var options message.Options
		for _, v := range rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 20)).Draw(t, "values") {
			options = append(options, message.Option{ID: message.OptionID(len(options)), Value: v})
		}
		clone := CloneOptions(options)
		require.Empty(t, cmp.Diff(options, clone, cmpopts.EquateEmpty()))
		for _, o := range options {
			for i := range o.Value {
				o.Value[i]++
				require.NotEqual(t, o.Value, clone[o.ID].Value)
				o.Value[i]--
			}
		}
	})
}

func TestRequestClone(t *testing.T) {
	make := func(buffer []byte) *Request {
		return &Request{
			ID: 7, Method: codes.POST, Options: byteOptions(buffer), Payload: buffer[3:], Confirmable: true,
			Target: Target{Scheme: "coap", Host: "group.example", Addr: netip.MustParseAddrPort("224.0.1.187:5683"), Group: true,
				GroupName: "g", Also: []GroupAddr{{netip.MustParseAddrPort("[ff02::fd%lo]:5683"), "h"}}},
			Timeout: Timeout{Seconds: 3, Present: true}, Client: &Identity{Name: "c"}, Peer: netip.MustParseAddrPort("192.0.2.1:9"),
			Local: netip.MustParseAddrPort("192.0.2.2:5683"), Arrival: time.Unix(1, 0), PreviousHop: time.Second, BodyLimit: 1024,
		}
	}
	buffer := []byte("abcde")
	r := make(buffer)
	clone := r.Clone()
	clear(buffer)
	r.Target.Also[0].Name = "changed"
	require.Empty(t, cmp.Diff(make([]byte("abcde")), clone, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(Request{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })))
	require.Same(t, r.Client, clone.Client, "an identity is shared")
	require.Empty(t, cmp.Diff(&Request{}, (&Request{}).Clone(), cmpopts.IgnoreUnexported(Request{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })))
}

func TestResponseClone(t *testing.T) {
	make := func(buffer []byte) *Response {
		return &Response{Code: codes.Content, Options: byteOptions(buffer), Payload: buffer[3:],
			From: netip.MustParseAddrPort("[fe80::1%lo]:5683"), GroupPort: 5683}
	}
	buffer := []byte("abcde")
	p := make(buffer)
	clone := p.Clone()
	clear(buffer)
	require.Empty(t, cmp.Diff(make([]byte("abcde")), clone, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })))
}

func TestTimeoutDuration(t *testing.T) {
	require.Equal(t, 90*time.Second, Timeout{Seconds: 90, Present: true}.Duration())
	require.Equal(t, (1<<32-1)*time.Second, Timeout{Seconds: 1<<32 - 1}.Duration())
}

// recorder is a Sink that notes its end.
type recorder struct{ ends []error }

func (r *recorder) Respond(*Response) Verdict { return Continue }
func (r *recorder) End(err error)             { r.ends = append(r.ends, err) }

func TestFail(t *testing.T) {
	var w recorder
	err := Failf(Denied, "no")
	h := HandlerFunc(func(_ *Request, w Sink) Canceler { return Fail(w, err) })
	h.Exchange(&Request{}, &w).Cancel()
	require.Equal(t, []error{err}, w.ends)
}

func TestFailure(t *testing.T) {
	cause := errors.New("cause")
	f := Failf(Overloaded, "%d requests wait", 3)
	require.Equal(t, "overloaded: 3 requests wait", f.Error())
	require.NoError(t, f.Unwrap())
	f.Err = cause
	require.Equal(t, "overloaded: 3 requests wait: cause", f.Error())
	require.ErrorIs(t, f, cause)

	require.Same(t, f, AsFailure(f))
	require.Same(t, f, AsFailure(fmt.Errorf("somewhere: %w", f)))
	require.Equal(t, &Failure{Reason: Internal, Detail: "internal error", Err: cause}, AsFailure(cause))
	require.Equal(t, Internal, AsFailure(ErrCanceled).Reason)
}

// Every reason has a name of its own, for logs and counters.
func TestReasonNames(t *testing.T) {
	seen := make(map[string]bool)
	for r := range Reasons {
		name := Reason(r).String()
		require.Regexp(t, `^[a-z_]+$`, name)
		require.False(t, seen[name], name)
		seen[name] = true
	}
	require.Equal(t, int(HopLimitReached)+1, Reasons)
	require.Equal(t, "reason_200", Reason(200).String())
}

// GP-127
func TestDialectNames(t *testing.T) {
	require.Equal(t, "draft-07", Draft07.String())
	require.Equal(t, "legacy", Legacy.String())
	require.Equal(t, "both", Both.String())
}
