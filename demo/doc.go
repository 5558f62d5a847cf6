// Package demo is a world to try a group proxy in, without hardware and
// without privileges: simulated devices on this host's loopback interface and
// the configuration of a proxy in front of them.
//
// The devices are simulated, the network is not: each one has an address and
// sockets of its own and is a member of a real multicast group, so that nothing
// tells them from devices on a wire but that their datagrams never leave the
// host.
package demo
