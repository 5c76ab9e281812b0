package vault

// policyRoutes are those of policies and capabilities.
func policyRoutes(Config) []route { return nil }
