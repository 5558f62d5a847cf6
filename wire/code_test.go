package wire

import (
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

func TestCodeString(t *testing.T) {
	names := strings.Split(`0.00 Empty,0.01 GET,0.02 POST,0.03 PUT,0.04 DELETE,0.05 FETCH,0.06 PATCH,0.07 iPATCH,`+
		`2.01 Created,2.02 Deleted,2.03 Valid,2.04 Changed,2.05 Content,2.31 Continue,`+
		`4.00 Bad Request,4.01 Unauthorized,4.02 Bad Option,4.03 Forbidden,4.04 Not Found,4.05 Method Not Allowed,`+
		`4.06 Not Acceptable,4.08 Request Entity Incomplete,4.09 Conflict,4.12 Precondition Failed,`+
		`4.13 Request Entity Too Large,4.15 Unsupported Content-Format,4.22 Unprocessable Entity,4.29 Too Many Requests,`+
		`5.00 Internal Server Error,5.01 Not Implemented,5.02 Bad Gateway,5.03 Service Unavailable,5.04 Gateway Timeout,`+
		`5.05 Proxying Not Supported,5.08 Hop Limit Reached,7.01 CSM,7.02 Ping,7.03 Pong,7.04 Release,7.05 Abort`, ",")
	var got []string
	for code := codes.Code(0); code <= 255; code++ {
		if s := CodeString(code); strings.Contains(s, " ") {
			got = append(got, s)
		} else {
			require.Len(t, s, len("2.05"))
		}
	}
	require.Equal(t, names, got)
	require.Equal(t, "3.01", CodeString(3<<5|1))
}

func TestParseMethod(t *testing.T) {
	for name, want := range map[string]codes.Code{"GET": codes.GET, "delete": codes.DELETE, "Fetch": FETCH, "PATCH": PATCH, "IPATCH": IPATCH, "iPATCH": IPATCH} {
		got, err := ParseMethod(name)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, name := range []string{"", "Content", "BREW"} {
		_, err := ParseMethod(name)
		require.Error(t, err)
	}
}

func TestCodeClasses(t *testing.T) {
	for code := codes.Code(0); code <= 255; code++ {
		class := code >> 5
		require.Equal(t, class == 0 && code != 0, IsRequest(code))
		require.Equal(t, 2 <= class && class <= 5, IsResponse(code))
	}
}

// GC-32
func TestSuppressed(t *testing.T) {
	for _, tt := range []struct {
		value            uint32
		success, cl, srv bool
	}{
		{0, false, false, false},
		{2, true, false, false},
		{8, false, true, false},
		{16, false, false, true},
		{NoResponseAll, true, true, true},
	} {
		require.Equal(t, tt.success, Suppressed(tt.value, codes.Content))
		require.Equal(t, tt.cl, Suppressed(tt.value, codes.NotFound))
		require.Equal(t, tt.srv, Suppressed(tt.value, HopLimitReached))
		require.False(t, Suppressed(tt.value, codes.GET))
	}
}
