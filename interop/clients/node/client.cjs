// The job of the npm package node-vault: node client.cjs STEP... prints a line of JSON for each step, with the error that stopped it.
'use strict';
const assert = require('assert');
const fs = require('fs');
const nodeVault = require('node-vault');

const ca = fs.readFileSync(process.env.VAULT_CACERT);
const at = (token) => {
  const c = nodeVault({ endpoint: process.env.VAULT_ADDR, requestOptions: { ca } });
  c.token = token;
  return c;
};
const b64 = (s) => Buffer.from(s).toString('base64');
const refused = async (doing, message, status) => {
  try {
    await doing();
  } catch (e) {
    assert.ok(e.message.includes(message), `refused by ${e.message}, not by ${message}`);
    assert.strictEqual(e.response.statusCode, status);
    return;
  }
  assert.fail(`done, and should be refused: ${message}`);
};

const admin = at(process.env.VAULT_TOKEN);
const name = 'interop-node';
let app; // what the application comes in with
let first;

const job = {
  async keys() {
    await admin.transitCreateKey({ name, type: 'aes256-gcm96' });
    const key = await admin.transitReadKey({ name });
    assert.strictEqual(key.data.latest_version, 1);
    assert.ok(typeof key.request_id === 'string' && key.request_id.length === 36 && key.lease_id === '' && key.wrap_info === null, 'the envelope');
    assert.ok((await admin.transitListKeys()).data.keys.includes(name));
    await admin.write('transit/keys/interop-gone', {});
    await refused(() => admin.transitDeleteKey({ name: 'interop-gone' }), 'deletion is not allowed for this key', 400);
    await admin.write('transit/keys/interop-gone/config', { deletion_allowed: true });
    await admin.transitDeleteKey({ name: 'interop-gone' });
    await refused(() => admin.transitReadKey({ name: 'interop-gone' }), 'Status 404', 404);
  },
  async use() {
    first = (await admin.encryptData({ name, plaintext: b64('one') })).data.ciphertext;
    assert.ok(first.startsWith('vault:v1:'), first);
    assert.strictEqual((await admin.decryptData({ name, ciphertext: first })).data.plaintext, b64('one'));
    await refused(() => admin.decryptData({ name, ciphertext: 'none' }), 'invalid ciphertext: no prefix', 400);
    await refused(() => admin.decryptData({ name: 'interop-missing', ciphertext: first }), 'encryption key not found', 400);
  },
  async rotate() {
    await admin.write(`transit/keys/${name}/rotate`, {});
    assert.ok((await admin.encryptData({ name, plaintext: b64('two') })).data.ciphertext.startsWith('vault:v2:'));
  },
  async rewrap() {
    const again = (await admin.rewrapData({ name, ciphertext: first })).data.ciphertext;
    assert.ok(again.startsWith('vault:v2:'), again);
    assert.strictEqual((await admin.decryptData({ name, ciphertext: again })).data.plaintext, b64('one'));
  },
  async old() {
    assert.strictEqual((await admin.decryptData({ name, ciphertext: first })).data.plaintext, b64('one'));
  },
  async login() {
    await admin.addPolicy({ name, rules: `path "transit/encrypt/${name}" { capabilities = ["update"] }` });
    assert.ok((await admin.policies()).data.policies.includes(name));
    await admin.addApproleRole({ role_name: name, policies: name, token_ttl: 1200 });
    const role_id = (await admin.getApproleRoleId({ role_name: name })).data.role_id;
    const secret_id = (await admin.getApproleRoleSecret({ role_name: name })).data.secret_id;
    app = at('');
    const got = await app.approleLogin({ role_id, secret_id });
    assert.strictEqual(got.auth.lease_duration, 1200);
    app.token = got.auth.client_token;
    await app.encryptData({ name, plaintext: b64('x') });
    await refused(() => at('').approleLogin({ role_id, secret_id: 'ffffffff-ffff-ffff-ffff-ffffffffffff' }), 'invalid', 400);
  },
  async renew() {
    assert.strictEqual((await app.tokenLookupSelf()).data.meta.role_name, name);
    assert.strictEqual((await app.tokenRenewSelf({ increment: 600 })).auth.client_token, app.token);
    // which takes the new token for its own
    const made = await at(process.env.VAULT_TOKEN).tokenCreate({ policies: ['default'], ttl: '1h', renewable: true });
    assert.ok(made.auth.renewable && made.auth.lease_duration === 3600, JSON.stringify(made.auth));
    await admin.tokenRevoke({ token: made.auth.client_token });
    await refused(() => at(made.auth.client_token).tokenLookupSelf(), 'permission denied', 403);
  },
  async denied() {
    await refused(() => app.decryptData({ name, ciphertext: first }), 'permission denied', 403);
    await refused(() => app.write(`transit/keys/${name}/rotate`, {}), 'permission denied', 403);
    await refused(() => app.transitListKeys(), 'permission denied', 403);
    await app.tokenRevokeSelf();
    await refused(() => app.encryptData({ name, plaintext: b64('x') }), 'permission denied', 403);
  },
  async more() {
    assert.strictEqual((await admin.status()).sealed, false);
    assert.strictEqual((await admin.initialized()).initialized, true);
    assert.strictEqual((await admin.health()).initialized, true);
    await admin.mount({ mount_point: 'interop-node', type: 'transit', description: 'of node-vault' });
    assert.ok((await admin.mounts()).data['interop-node/']);
    await admin.unmount({ mount_point: 'interop-node' });
    assert.ok((await admin.auths()).data['approle/']);
    await admin.write('transit/keys/interop-node/config', { deletion_allowed: true });
    await admin.delete('transit/keys/interop-node');
  },
};

(async () => {
  for (const step of process.argv.slice(2)) {
    let error = null;
    try {
      await job[step]();
    } catch (e) {
      error = e.stack; // the message with where it was
    }
    console.log(JSON.stringify({ step, error }));
  }
})();
