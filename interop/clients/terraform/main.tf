# What a team that uses one key for encryption is given: an engine, a key, a policy, a way in, a token.
terraform {
  required_providers {
    vault = { source = "hashicorp/vault" }
  }
}

provider "vault" {} # VAULT_ADDR, VAULT_CACERT, VAULT_TOKEN

variable "rotations" {
  type    = number
  default = 0
}

variable "ttl" {
  type    = number
  default = 1200
}

resource "vault_mount" "team" {
  path                      = "interop-terraform"
  type                      = "transit"
  description               = "of a team"
  default_lease_ttl_seconds = 3600
  max_lease_ttl_seconds     = 86400
}

resource "vault_generic_endpoint" "key" {
  path                 = "${vault_mount.team.path}/keys/orders"
  data_json            = jsonencode({ type = "aes256-gcm96" })
  ignore_absent_fields = true
}

resource "vault_generic_endpoint" "config" {
  depends_on           = [vault_generic_endpoint.key]
  path                 = "${vault_mount.team.path}/keys/orders/config"
  data_json            = jsonencode({ deletion_allowed = true })
  disable_read         = true
  disable_delete       = true
  ignore_absent_fields = true
}

resource "vault_generic_endpoint" "rotate" {
  depends_on     = [vault_generic_endpoint.config]
  count          = var.rotations
  path           = "${vault_mount.team.path}/keys/orders/rotate"
  data_json      = "{}"
  disable_read   = true
  disable_delete = true
}

resource "vault_policy" "team" {
  name   = "interop-terraform"
  policy = <<-EOT
    path "${vault_mount.team.path}/encrypt/orders" { capabilities = ["update"] }
    path "${vault_mount.team.path}/decrypt/orders" { capabilities = ["update"] }
  EOT
}

resource "vault_auth_backend" "team" {
  type = "approle"
  path = "interop-approle"
}

resource "vault_approle_auth_backend_role" "team" {
  backend   = vault_auth_backend.team.path
  role_name = "orders"
  policies  = [vault_policy.team.name]
  period    = var.ttl # which this version of the provider wants to read again
}

resource "vault_approle_auth_backend_role_secret_id" "team" {
  backend   = vault_auth_backend.team.path
  role_name = vault_approle_auth_backend_role.team.role_name
}

resource "vault_approle_auth_backend_login" "team" {
  backend   = vault_auth_backend.team.path
  role_id   = vault_approle_auth_backend_role.team.role_id
  secret_id = vault_approle_auth_backend_role_secret_id.team.secret_id
}

resource "vault_token_auth_backend_role" "team" {
  role_name        = "interop-terraform"
  allowed_policies = [vault_policy.team.name]
  orphan           = true
  period           = "3600"
}

resource "vault_token" "team" {
  role_name = vault_token_auth_backend_role.team.role_name
  policies  = [vault_policy.team.name]
  ttl       = "1h"
}

data "vault_approle_auth_backend_role_id" "team" {
  backend   = vault_auth_backend.team.path
  role_name = vault_approle_auth_backend_role.team.role_name
}

output "token" {
  value     = vault_token.team.client_token
  sensitive = true
}

output "login" {
  value     = vault_approle_auth_backend_login.team.client_token
  sensitive = true
}

output "role_id" {
  value = data.vault_approle_auth_backend_role_id.team.role_id
}
