// Package service makes a proxy of a configuration and keeps it at work: it wires
// the rooms together, opens the listeners, takes new configurations over without
// disturbing what runs, and ends it all in order.
//
// proxy.go has what lives as long as the process, generation.go the chain of layers
// that one configuration makes, and reload.go how the one follows the other. Each of the
// other files wires one room.
package service
