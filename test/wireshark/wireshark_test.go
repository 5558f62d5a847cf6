// Package wireshark shows captured messages to tshark with the project's
// dissector.
package wireshark

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

type vector struct {
	Name   string `json:"name"`
	Option int    `json:"option"`
	Value  string `json:"value_hex"`
	Server string `json:"server"`
	Expect string `json:"expect"`
}

const nobody = 65534

// TestDissector holds the dissector to the same bytes as the codec.
func TestDissector(t *testing.T) {
	data, err := os.ReadFile("../../testdata/group-proxy-options.json")
	require.NoError(t, err)
	var all struct {
		Timeout    []vector `json:"multicast_timeout"`
		ETag       []vector `json:"group_etag"`
		ReplyFrom  []vector `json:"reply_from"`
		Forwarding []vector `json:"response_forwarding"`
		Bad        []vector `json:"decode_cases"`
	}
	require.NoError(t, json.Unmarshal(data, &all))
	var messages [][]byte
	var want []string
	add := func(v vector, shown string) {
		value, err := hex.DecodeString(v.Value)
		require.NoError(t, err)
		messages, want = append(messages, message(v.Option, value)), append(want, v.Name+" "+shown)
	}
	for _, v := range all.Timeout {
		seconds, err := strconv.ParseUint("0"+v.Value, 16, 64)
		require.NoError(t, err)
		add(v, strconv.FormatUint(seconds, 10)+"||||")
	}
	for _, v := range all.ETag {
		add(v, "|"+v.Value+"|||")
	}
	for _, v := range all.ReplyFrom {
		value, err := hex.DecodeString(v.Value)
		require.NoError(t, err)
		parsed, err := wire.ParseReplyFrom(value)
		require.NoError(t, err, v.Name)
		follow := ""
		if ref := parsed.Ref; ref != nil {
			switch {
			case ref.Addr.Is6():
				follow = "//[" + ref.Addr.String() + "]"
			case ref.Addr.IsValid():
				follow = "//" + ref.Addr.String()
			case ref.Host != "":
				follow = "//" + ref.Host
			}
			if ref.Port != 0 && follow != "" && ref.Port != parsed.Server.Port {
				follow += ":" + strconv.Itoa(int(ref.Port))
			}
			for _, segment := range ref.Path {
				follow += "/" + segment
			}
		}
		add(v, "||"+parsed.ServerURI()+"||"+follow)
	}
	for _, v := range all.Forwarding {
		shown := "|||coap://" + strings.TrimSuffix(v.Server, ":5683")
		if strings.HasSuffix(v.Value, "f6") { // null
			shown = shown[:strings.LastIndex(shown, ":")] + " (the port of the group)"
		}
		add(v, shown+"|")
	}
	clean := len(messages)
	for _, v := range all.Bad { // shown as something or nothing, and harmless
		add(v, "")
	}

	// tshark runs no scripts as root, so that everything is where nobody can read it.
	dir, err := os.MkdirTemp("", "wireshark-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	script, err := os.ReadFile("../../deploy/wireshark/coap-group-proxy.lua")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "script.lua"), script, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "capture.pcap"), capture(messages), 0o644))
	cmd := exec.Command("tshark", "-X", "lua_script:script.lua", "-r", "capture.pcap", "-T", "fields", "-E", "separator=|",
		"-e", "coap_group.multicast_timeout", "-e", "coap_group.group_etag", "-e", "coap_group.reply_from", "-e", "coap_group.response_forwarding", "-e", "coap_group.reply_from.follow_up")
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), errs.String())
	require.NotContains(t, errs.String(), "Lua")
	lines := strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	require.Len(t, lines, len(messages))
	for i, line := range lines {
		t.Log(want[i], "=>", line)
		require.NotContains(t, line, "Lua Error")
		if i < clean {
			name, shown, _ := strings.Cut(want[i], " ")
			require.Equal(t, shown, line, name)
		}
	}
}

// message is a NON 2.05 with one option.
func message(option int, value []byte) []byte {
	m := []byte{0x50, 0x45, 0, 1}
	head := byte(0)
	var more []byte
	for i, n := range []int{option, len(value)} {
		nibble := byte(n)
		switch {
		case n >= 269:
			nibble, more = 14, binary.BigEndian.AppendUint16(more, uint16(n-269))
		case n >= 13:
			nibble, more = 13, append(more, byte(n-13))
		}
		head |= nibble << (4 * (1 - i))
	}
	return append(append(append(m, head), more...), value...)
}

// capture is a pcap file of UDP datagrams from and to port 5683, as raw IPv4.
func capture(messages [][]byte) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32(nil, 0xa1b2c3d4)
	out = le.AppendUint16(le.AppendUint16(out, 2), 4)
	out = le.AppendUint32(le.AppendUint32(le.AppendUint32(le.AppendUint32(out, 0), 0), 65535), 101)
	for i, m := range messages {
		n := 28 + len(m)
		out = le.AppendUint32(le.AppendUint32(le.AppendUint32(le.AppendUint32(out, uint32(i)), 0), uint32(n)), uint32(n))
		be := binary.BigEndian
		ip := be.AppendUint16([]byte{0x45, 0}, uint16(n))
		ip = append(ip, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2)
		udp := be.AppendUint16(be.AppendUint16(be.AppendUint16(be.AppendUint16(nil, 5683), 40000), uint16(8+len(m))), 0)
		out = append(append(append(out, ip...), udp...), m...)
	}
	return out
}
