package sandbox

// Filter is the program of the filter.
var Filter = filter

// AsInFiles reads what may be dropped.
var AsInFiles = asInFiles
