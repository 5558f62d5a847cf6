// Package access decides who may do what: it identifies clients, keeps each to
// the groups, methods and targets it was given, and limits rates. Everything
// that is not allowed explicitly is denied (GP-23, FP-85).
package access
