package acl

import (
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/policy"
)

// Fill has the service know of tokens and wrapped answers that live for an hour, of somebody: so many that they are half of all that there may be.
func (s *Service) Fill(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := s.Now().Add(time.Hour)
	for i := range maxTokens / 2 {
		t := token{Accessor: fmt.Sprint(owner, i), Caller: "vault/token/x", Expires: end, Makers: []policy.Maker{{Name: owner}, {Name: "vault/token/x"}}}
		s.tokens.rows[slotName(uint32(maxTokens-1-i))] = row[token]{value: t, rev: 1}
	}
	for i := range maxWraps / 2 {
		s.wraps.rows[slotName(uint32(maxWraps-1-i))] = row[wrap]{value: wrap{Owner: owner, Expires: end}, rev: 1}
	}
}
