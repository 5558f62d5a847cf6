package oscorehop

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Every AEAD with every hash, against another implementation of both.
// OC-2, OC-4, OC-11, OC-12
func TestVectorsAlgorithms(t *testing.T) {
	var file struct {
		Inputs struct {
			MasterSecret hexBytes `json:"master_secret"`
			MasterSalt   hexBytes `json:"master_salt"`
			IDContext    hexBytes `json:"id_context"`
			SenderID     hexBytes `json:"sender_id"`
			RecipientID  hexBytes `json:"recipient_id"`
			Sequence     uint64   `json:"sender_sequence_number"`
		}
		Vectors []struct {
			Algorithm         Algorithm `json:"aead_algorithm"`
			Name              string
			HKDF              string
			SenderKey         hexBytes `json:"sender_key"`
			RecipientKey      hexBytes `json:"recipient_key"`
			CommonIV          hexBytes `json:"common_iv"`
			Nonce             hexBytes
			AAD               hexBytes
			Plaintext         hexBytes
			ProtectedRequest  hexBytes `json:"protected_request"`
			ResponsePlaintext hexBytes `json:"response_plaintext"`
			ProtectedResponse hexBytes `json:"protected_response"`
		}
	}
	readVectors(t, "oscore-algorithms.json", &file)
	require.Len(t, file.Vectors, 2*len(allAlgorithms))
	for _, v := range file.Vectors {
		t.Run(v.Name+" "+v.HKDF, func(t *testing.T) {
			hash, err := ParseHash(v.HKDF)
			require.NoError(t, err)
			require.Equal(t, v.Name, v.Algorithm.String())
			p := Parameters{
				Algorithm: v.Algorithm, Hash: hash, MasterSecret: file.Inputs.MasterSecret, MasterSalt: file.Inputs.MasterSalt,
				IDContext: file.Inputs.IDContext, SenderID: file.Inputs.SenderID, RecipientID: file.Inputs.RecipientID,
			}
			k, err := p.derive()
			require.NoError(t, err)
			require.Equal(t, keys{sender: v.SenderKey, recipient: v.RecipientKey, iv: v.CommonIV}, k)

			client, server := ephemeral(t, p, file.Inputs.Sequence), ephemeral(t, peerOf(p), 0)
			plain, err := parsePlaintext(append(make([]byte, wireHeader), v.Plaintext...), false)
			require.NoError(t, err)
			header, _ := datagram(t, v.ProtectedRequest)
			protected, requester, err := client.ProtectRequest(plain, DefaultClasses)
			require.NoError(t, err)
			require.Equal(t, []byte(v.Nonce), requester.nonce)
			require.Equal(t, []byte(v.AAD), requester.aad)
			require.Equal(t, []byte(v.ProtectedRequest), encode(t, header, protected))
			got, responder, err := unprotectRequest(server, protected, DefaultClasses)
			require.NoError(t, err)
			require.Equal(t, plain, got)

			answer, err := parsePlaintext(append(make([]byte, wireHeader), v.ResponsePlaintext...), true)
			require.NoError(t, err)
			header, _ = datagram(t, v.ProtectedResponse)
			protected, err = responder.Protect(answer, DefaultClasses)
			require.NoError(t, err)
			require.Equal(t, []byte(v.ProtectedResponse), encode(t, header, protected))
			got, err = requester.Unprotect(protected, DefaultClasses)
			require.NoError(t, err)
			require.Equal(t, answer.Code, got.Code)
			require.Equal(t, answer.Payload, got.Payload)
		})
	}
}
