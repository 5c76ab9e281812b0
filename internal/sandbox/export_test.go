package sandbox

// Filter is the program of the filter.
var Filter = filter
