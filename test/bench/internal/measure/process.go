package measure

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// tick is the unit of the times in /proc/PID/stat: USER_HZ, which Linux fixes at 100 per second for programs.
const tick = 10 * time.Millisecond

// CPU returns the user and system time that process pid has used so far, to 10 ms.
func CPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(b)
}

// RSS returns the resident set of process pid in bytes: that it has, and the largest it has had.
func RSS(pid int) (now, peak int64, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, 0, err
	}
	if now, err = parseStatus(b, "VmRSS:"); err == nil {
		peak, err = parseStatus(b, "VmHWM:")
	}
	return now, peak, err
}

var (
	errStat   = errors.New("measure: /proc/PID/stat has another form than proc(5) says")
	errStatus = errors.New("measure: no such size in /proc/PID/status")
)

// parseStat sums fields 14 (utime) and 15 (stime). Field 2 is the program's name in parentheses and may hold
// blanks and parentheses itself, so fields are counted from the last one.
func parseStat(b []byte) (time.Duration, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, errStat
	}
	f := bytes.Fields(b[i+1:]) // f[0] is field 3
	if len(f) < 13 {
		return 0, errStat
	}
	var sum uint64
	for _, v := range f[11:13] {
		n, err := strconv.ParseUint(string(v), 10, 63)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", errStat, err)
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

func parseStatus(b []byte, name string) (int64, error) {
	for line := range bytes.Lines(b) {
		value, ok := bytes.CutPrefix(line, []byte(name))
		if !ok {
			continue
		}
		f := bytes.Fields(value)
		if len(f) != 2 || string(f[1]) != "kB" {
			return 0, errStatus
		}
		n, err := strconv.ParseInt(string(f[0]), 10, 53)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", errStatus, err)
		}
		return n << 10, nil
	}
	return 0, errStatus
}
