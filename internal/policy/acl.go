package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Operation is what a request does to a path, as the capabilities of an access control list (ACL) name it.
type Operation string

// The operations. Sudo and Deny are capabilities that no request has as its operation.
const (
	OpCreate Operation = "create"
	OpRead   Operation = "read"
	OpUpdate Operation = "update"
	OpDelete Operation = "delete"
	OpList   Operation = "list"
	OpPatch  Operation = "patch"

	CapSudo Operation = "sudo"
	CapDeny Operation = "deny"
)

// Capabilities returns every capability that a policy may name, in the order in which they are shown.
func Capabilities() []Operation {
	return []Operation{CapDeny, CapSudo, OpRead, OpList, OpUpdate, OpDelete, OpCreate, OpPatch}
}

// Request is what a front end whose rights are about paths was asked for. It is what an ACL decides about.
type Request struct {
	Namespace  string
	Life       uint64 // of the namespace when the request came (guard.Life): what it began in a namespace that was deleted meanwhile it does not end in one that was made again
	Path       string // below the API's version, without a slash at its begin: transit/encrypt/orders
	Operation  Operation
	Parameters map[string]any // of the body and the query, as encoding/json has them; names as they came
	Wrap       time.Duration  // that the answer is to be wrapped for; 0: it is not
	Sudo       bool           // the path is one of those that need the capability sudo, too
	Unread     bool           // neither Parameters nor Wrap are known yet: who may with some of them may
}

// Grants are what one stanza of a policy says of its path.
type Grants struct {
	Capabilities []Operation

	// Allowed and Denied are values of parameters by their names in lower case ("*": every name); an empty list stands for every value.
	// Text may have a * at its begin and its end.
	Allowed, Denied map[string][]any
	Required        []string
	MinWrap         time.Duration
	MaxWrap         time.Duration
}

// Stanza is one path of a policy. Its path may end in *, and have + for one segment.
type Stanza struct {
	Path string
	Grants
}

// PathPolicy is a named policy about paths.
type PathPolicy struct {
	Name    string
	Stanzas []Stanza
}

// RootPolicy is the name of the policy that allows everything.
const RootPolicy = "root"

// ACL is the union of the policies of one token, compiled. It does not change. A nil *ACL allows nothing and denies nothing.
type ACL struct {
	namespace  string
	everywhere bool // namespaces of others are below its own
	root       bool
	exact      map[string]*permissions
	prefixes   map[string]*permissions
	lengths    []int         // of the prefixes, the longest first
	segments   []segmentRule // with a + in them, those that count first first
}

// permissions are the merged stanzas of one path.
type permissions struct {
	granted  map[Operation]string // the capability, and the first policy with it
	allowed  map[string][]any
	denied   map[string][]any
	required []string
	min, max time.Duration
}

// segmentRule is a path with a + in it.
type segmentRule struct {
	order
	parts []string
	perms *permissions
}

// order is what decides which of several rules that fit a path counts: the one whose first wildcard is latest, then one without a * at its end,
// then one with fewer +, then the longer, and then that which is later in the alphabet.
type order struct {
	first  int
	prefix bool
	pluses int
	path   string
}

func (o order) compare(p order) int {
	last := func(prefix bool) int {
		if prefix {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(p.first, o.first), cmp.Compare(last(o.prefix), last(p.prefix)), cmp.Compare(o.pluses, p.pluses),
		cmp.Compare(len(p.path), len(o.path)), cmp.Compare(p.path, o.path))
}

// NewACL compiles policies of one namespace. everywhere: the paths of every other namespace are below its own, behind the namespace's name, as
// it is with the one that the others are in.
func NewACL(namespace string, everywhere bool, policies []PathPolicy) *ACL {
	a := &ACL{namespace: namespace, everywhere: everywhere, exact: map[string]*permissions{}, prefixes: map[string]*permissions{}}
	segments := map[string]*permissions{}
	for _, p := range policies {
		if p.Name == RootPolicy {
			a.root = true
			continue
		}
		for _, s := range p.Stanzas {
			path, where := s.Path, a.exact // the parser has taken a slash off its begin, and a second one fits nothing
			if hasSegments(path) {
				where = segments
			} else if prefix, ok := strings.CutSuffix(path, "*"); ok {
				path, where = prefix, a.prefixes
			}
			if where[path] == nil {
				where[path] = &permissions{granted: map[Operation]string{}}
			}
			where[path].merge(p.Name, s.Grants)
		}
	}
	for prefix := range a.prefixes {
		a.lengths = append(a.lengths, len(prefix))
	}
	slices.SortFunc(a.lengths, func(x, y int) int { return y - x })
	a.lengths = slices.Compact(a.lengths)
	for path, perms := range segments {
		a.segments = append(a.segments, newSegmentRule(path, perms))
	}
	slices.SortFunc(a.segments, func(x, y segmentRule) int { return x.compare(y.order) })
	return a
}

func hasSegments(path string) bool {
	return path == "+" || strings.HasPrefix(path, "+/") || strings.Contains(path, "/+")
}

func newSegmentRule(path string, perms *permissions) segmentRule {
	r := segmentRule{order: order{first: strings.IndexByte(path, '+')}, perms: perms}
	r.path, r.prefix = strings.CutSuffix(path, "*")
	r.parts = strings.Split(r.path, "/")
	for _, p := range r.parts {
		if p == "+" {
			r.pluses++
		}
	}
	return r
}

func (r segmentRule) fits(parts []string) bool {
	if len(parts) < len(r.parts) || !r.prefix && len(parts) != len(r.parts) {
		return false
	}
	for i, want := range r.parts {
		if want == "+" || want == parts[i] || r.prefix && i == len(r.parts)-1 && strings.HasPrefix(parts[i], want) {
			continue
		}
		return false
	}
	return true
}

// begins says whether a path below those segments may fit.
func (r segmentRule) begins(parts []string) bool {
	if len(r.parts) <= len(parts) {
		return r.prefix && r.fits(append(slices.Clone(parts), ""))
	}
	for i, part := range parts {
		if want := r.parts[i]; want != "+" && want != part {
			return false
		}
	}
	return true
}

// merge adds what another stanza says of the same path: a denial is all that counts; else the capabilities add up, so do the values of
// parameters, and of two limits of a time the smaller one counts.
func (p *permissions) merge(policy string, g Grants) {
	if _, denied := p.granted[CapDeny]; denied {
		return
	}
	if slices.Contains(g.Capabilities, CapDeny) {
		*p = permissions{granted: map[Operation]string{CapDeny: policy}}
		return
	}
	for _, c := range g.Capabilities {
		if _, there := p.granted[c]; !there {
			p.granted[c] = policy
		}
	}
	smaller := func(old, other time.Duration) time.Duration {
		if other > 0 && (old == 0 || other < old) {
			return other
		}
		return old
	}
	p.min, p.max = smaller(p.min, g.MinWrap), smaller(p.max, g.MaxWrap)
	p.allowed, p.denied = mergeValues(p.allowed, g.Allowed), mergeValues(p.denied, g.Denied)
	for _, name := range g.Required {
		if !slices.Contains(p.required, name) {
			p.required = append(p.required, name)
		}
	}
}

// mergeValues adds values up. An empty list, which is every value, stays one.
func mergeValues(old, other map[string][]any) map[string][]any {
	if len(other) == 0 {
		return old
	}
	out := maps.Clone(old)
	if out == nil {
		out = map[string][]any{}
	}
	for name, values := range other {
		name = foldName(name)
		before, there := out[name]
		if len(values) == 0 || there && len(before) == 0 {
			out[name] = []any{}
		} else {
			out[name] = slices.Concat(values, before)
		}
	}
	return out
}

// find returns what counts for a path; nil: nothing is said of it.
func (a *ACL) find(path string, list bool) *permissions {
	if p := a.exact[path]; p != nil {
		return p
	}
	if list {
		if p := a.exact[strings.TrimSuffix(path, "/")]; p != nil {
			return p
		}
	}
	prefix, found := "", (*permissions)(nil)
	for _, n := range a.lengths {
		if n <= len(path) && a.prefixes[path[:n]] != nil {
			prefix, found = path[:n], a.prefixes[path[:n]]
			break
		}
	}
	if len(a.segments) == 0 {
		return found
	}
	parts := strings.Split(path, "/")
	for _, r := range a.segments {
		if !r.fits(parts) {
			continue
		}
		if other := (order{first: len(prefix), prefix: true, path: prefix}); found != nil && other.compare(r.order) < 0 {
			return found
		}
		return r.perms
	}
	return found
}

// Verdict is what an ACL says of a request.
type Verdict struct {
	Allowed bool
	Denied  bool   // by the capability deny: nothing else can allow it
	Root    bool   // allowed by the policy root
	Policy  string // that allowed it
}

// Decide says whether the policies allow a request. What they are silent about is not allowed, and not denied either.
func (a *ACL) Decide(r *Request) Verdict {
	if a == nil || r == nil {
		return Verdict{}
	}
	path, ok := a.path(r)
	if !ok {
		return Verdict{}
	}
	if a.root {
		return Verdict{Allowed: true, Root: true, Policy: RootPolicy}
	}
	p := a.find(path, r.Operation == OpList)
	if p == nil {
		return Verdict{}
	}
	if _, denied := p.granted[CapDeny]; denied {
		return Verdict{Denied: true}
	}
	policy, ok := p.granted[r.Operation]
	if _, sudo := p.granted[CapSudo]; !ok || r.Sudo && !sudo || !r.Unread && !p.admits(r) {
		return Verdict{}
	}
	return Verdict{Allowed: true, Policy: policy}
}

// Weighs says whether what is decided about a request depends on its parameters, or on how its answer is wrapped, so that they need not be decoded where it
// does not.
func (a *ACL) Weighs(r *Request) bool {
	if a == nil || a.root {
		return false
	}
	path, ok := a.path(r)
	if !ok {
		return false
	}
	p := a.find(path, r.Operation == OpList)
	return p != nil && (len(p.required)+len(p.denied)+len(p.allowed) > 0 || p.min+p.max > 0)
}

// Reaches says whether something that begins with a path of a namespace may be allowed: whether a caller has anything to do there.
func (a *ACL) Reaches(namespace, prefix string) bool {
	if a == nil {
		return false
	}
	prefix, ok := a.path(&Request{Namespace: namespace, Path: prefix})
	if !ok {
		return false
	}
	if a.root {
		return true
	}
	gives := func(p *permissions) bool {
		if p == nil {
			return false
		}
		_, denied := p.granted[CapDeny]
		return !denied && len(p.granted) > 0
	}
	if gives(a.find(prefix, true)) {
		return true
	}
	for _, below := range []map[string]*permissions{a.exact, a.prefixes} {
		for path, p := range below {
			if strings.HasPrefix(path, prefix) && gives(p) {
				return true
			}
		}
	}
	parts := strings.Split(strings.TrimSuffix(prefix, "/"), "/")
	for _, r := range a.segments {
		if gives(r.perms) && r.begins(parts) {
			return true
		}
	}
	return false
}

// path is that of a request as the policies' namespace sees it. It ends in a slash where something is listed.
func (a *ACL) path(r *Request) (string, bool) {
	path := strings.TrimLeft(r.Path, "/")
	if r.Operation == OpList && path != "" && !strings.HasSuffix(path, "/") {
		path += "/"
	}
	switch {
	case r.Namespace == a.namespace:
		return path, true
	case a.everywhere:
		return r.Namespace + "/" + path, true
	}
	return "", false
}

// Sees says whether policies can be about a namespace at all. Those of no token can.
func (a *ACL) Sees(namespace string) bool {
	return a == nil || a.everywhere || namespace == a.namespace
}

// Namespace is where the policies are kept: that of their token. A nil ACL has none.
func (a *ACL) Namespace() string {
	if a == nil {
		return ""
	}
	return a.namespace
}

// Root says whether the policy root is among the policies.
func (a *ACL) Root() bool { return a != nil && a.root }

// Paths are what the policies say of whole paths, and of those that begin so, without their *; paths with a + are not among them. What is denied, or has no
// capability, has deny alone.
func (a *ACL) Paths() (exact, prefixes map[string]Grants) {
	if a == nil {
		return nil, nil
	}
	return grantsOf(a.exact), grantsOf(a.prefixes)
}

func grantsOf(all map[string]*permissions) map[string]Grants {
	out := make(map[string]Grants, len(all))
	for path, p := range all {
		out[path] = Grants{p.capabilities(), p.allowed, p.denied, p.required, p.min, p.max}
	}
	return out
}

// capabilities are those that are granted, as they are shown; deny alone where there is none.
func (p *permissions) capabilities() []Operation {
	if p == nil || len(p.granted) == 0 {
		return []Operation{CapDeny}
	}
	var out []Operation
	for _, c := range Capabilities() {
		if _, there := p.granted[c]; there {
			out = append(out, c)
		}
	}
	return out
}

// Capabilities are those on a path of a namespace, sorted as they are shown; "root" alone, or "deny" alone where there is none.
func (a *ACL) Capabilities(namespace, path string) []string {
	if a == nil {
		return []string{string(CapDeny)}
	}
	path, ok := a.path(&Request{Namespace: namespace, Path: path})
	switch {
	case ok && a.root:
		return []string{RootPolicy}
	case !ok:
		return []string{string(CapDeny)}
	}
	var out []string
	for _, c := range a.find(path, true).capabilities() {
		out = append(out, string(c))
	}
	return out
}

// admits checks wrapping and parameters.
func (p *permissions) admits(r *Request) bool {
	if p.max > 0 && (r.Wrap == 0 || r.Wrap > p.max) || p.min > 0 && (r.Wrap == 0 || r.Wrap < p.min) {
		return false
	}
	switch r.Operation {
	case OpRead, OpUpdate, OpCreate, OpPatch:
		return p.admitsParameters(r.Parameters)
	}
	return true
}

func (p *permissions) admitsParameters(all map[string]any) bool {
	if len(p.required) == 0 && len(p.denied) == 0 && len(p.allowed) == 0 {
		return true
	}
	named := map[string]bool{}
	for name := range all {
		named[foldName(name)] = true
	}
	for _, name := range p.required {
		if !named[foldName(name)] {
			return false
		}
	}
	if len(all) == 0 {
		return true
	}
	if _, every := p.denied["*"]; every {
		return false
	}
	_, rest := p.allowed["*"] // what is not named is allowed
	rest = rest || len(p.allowed) == 0
	for name, value := range all {
		name = foldName(name)
		if values, ok := p.denied[name]; ok && meets(values, value) {
			return false
		}
		if values, ok := p.allowed[name]; ok && !holds(values, value) || !ok && !rest {
			return false
		}
	}
	return true
}

// foldName makes names equal that a decoder of JSON which ignores case would take for the same: it folds as Unicode does, where ſ is an s.
func foldName(name string) string { return strings.ToLower(strings.ToUpper(name)) }
