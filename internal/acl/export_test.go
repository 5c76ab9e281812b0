package acl

import (
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
)

// Fill has the service know of tokens and wrapped answers that live for an hour, of somebody: so many that they are half of all that there may be.
func (s *Service) Fill(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := s.Now().Add(time.Hour)
	for i := range maxTokens / 2 {
		t := token{Accessor: fmt.Sprint(owner, i), Caller: "vault/token/x", Expires: end, Makers: []policy.Maker{{Name: owner}, {Name: "vault/token/x"}}}
		s.tokens.Rows[slotName(uint32(maxTokens-1-i))] = guard.Row[token]{Value: t, Rev: 1}
	}
	for i := range maxWraps / 2 {
		s.wraps.Rows[slotName(uint32(maxWraps-1-i))] = guard.Row[wrap]{Value: wrap{Owner: owner, Expires: end}, Rev: 1}
	}
}
