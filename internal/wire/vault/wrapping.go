package vault

import "context"

// wrappingRoutes are sys/wrapping.
func wrappingRoutes(Config) []route { return nil }

// wrapped keeps an answer for whoever shows the token that stands in its place.
func wrapped(context.Context, Config, *request, *response) (*response, error) {
	return nil, bad("response wrapping is not supported")
}
