// Package membership knows who is in a group: from a list in the configuration,
// from who answers, or from a resource directory (RFC 9176). Whether all members
// are known decides whether a group request can be answered from stored
// responses alone (GP-75) and whether there is a Group-ETag (GP-82).
package membership
