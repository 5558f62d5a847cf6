package config_test

import (
	"encoding/csv"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// GP-1: no group option may take the number of another elective option.
func TestOptionNumbersOfOthers(t *testing.T) {
	f, err := os.Open("../testdata/option-numbers.csv")
	require.NoError(t, err)
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	require.NoError(t, err)
	tried := 0
	for _, row := range rows[1:] {
		n, err := strconv.Atoi(row[0])
		switch {
		case err != nil, n&1 != 0: // a range, or critical
			continue
		case n == 2, n == 248, n == 24, n == 96: // the group options themselves
			continue
		}
		name := row[1]
		if name == "(reserved)" {
			name = "a reserved option (RFC 7252)"
		}
		_, err = parse(fmt.Sprintf("proxy:\n  option_numbers:\n    reply_from: %d\n", n))
		require.EqualError(t, err, fmt.Sprintf(
			"c.yaml:3: proxy.option_numbers.reply_from: %d is the number of %s; write another, e.g. 248", n, name))
		tried++
	}
	require.Greater(t, tried, 15)
}

// Numbers that fit are accepted, and so is swapping two of the own ones.
func TestOptionNumbersChanged(t *testing.T) {
	c, err := parse("proxy:\n  option_numbers: {multicast_timeout: 65002, legacy_timeout: 65006, reply_from: 24, group_etag: 248, response_forwarding: 65000}\n")
	require.NoError(t, err)
	o := c.Proxy.OptionNumbers
	require.Equal(t, []uint16{65002, 65006, 24, 248, 65000},
		[]uint16{o.MulticastTimeout, o.LegacyTimeout, o.ReplyFrom, o.GroupETag, o.ResponseForwarding})
}
