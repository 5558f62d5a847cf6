package oscorehop

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// OH-20, OH-21, OH-51
func TestNamespace(t *testing.T) {
	plain := testParameters(DefaultAlgorithm)
	withID := testParameters(DefaultAlgorithm)
	withID.RecipientID, withID.IDContext = []byte{3}, []byte("id")
	emptyID := testParameters(DefaultAlgorithm)
	emptyID.RecipientID, emptyID.IDContext = []byte{}, []byte{}
	contexts := map[string]*Context{}
	var n Namespace
	for name, p := range map[string]Parameters{"plain": plain, "with": withID, "empty": emptyID} {
		contexts[name] = ephemeral(t, p, 0)
		require.NoError(t, n.Add(contexts[name]))
	}
	for _, v := range []struct {
		kid, kidContext []byte
		want            string
	}{
		{[]byte{2}, nil, "plain"},
		{[]byte{2}, []byte{}, ""},
		{[]byte{2}, []byte("id"), ""},
		{[]byte{3}, []byte("id"), "with"},
		{[]byte{3}, nil, "with"},
		{[]byte{3}, []byte("other"), ""},
		{[]byte{}, []byte{}, "empty"},
		{[]byte{}, nil, "empty"},
		{nil, nil, ""},
		{[]byte{4}, nil, ""},
	} {
		c, err := n.Find(Option{KID: v.kid, KIDContext: v.kidContext, PartialIV: []byte{0}})
		if v.want == "" {
			requireRefused(t, NoContext, err)
			require.Nil(t, c)
			continue
		}
		require.NoError(t, err)
		require.Same(t, contexts[v.want], c)
	}

	require.ErrorContains(t, n.Add(ephemeral(t, plain, 0)), "02", "a Recipient ID is there once")
	n.Remove(ephemeral(t, plain, 0)) // another context: not this one
	option := Option{KID: []byte{2}}
	_, err := n.Find(option)
	require.NoError(t, err)
	n.Remove(contexts["plain"])
	_, err = n.Find(option)
	requireRefused(t, NoContext, err)
}
