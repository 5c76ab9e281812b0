package native

import (
	"context"
	"maps"
	"slices"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// data is DataService.
type data struct{ Config }

// Register adds a data set.
func (s data) Register(ctx context.Context, r *connect.Request[rotorv1.RegisterRequest]) (*connect.Response[rotorv1.DataSet], error) {
	m := r.Msg.GetDataSet()
	d, err := s.Campaigns.Register(ctx, wire.Caller(ctx), s.ref(m.GetKey()), campaign.DataSet{
		Name: m.GetName(), URL: m.GetUrl(), MaxInFlight: duration(m.GetMaxInFlightNs()),
	})
	return answer(s.dataSetMessage(d), err)
}

// DataSets lists the data sets.
func (s data) DataSets(ctx context.Context, _ *connect.Request[rotorv1.DataSetsRequest]) (*connect.Response[rotorv1.DataSetsResponse], error) {
	all, err := s.Campaigns.DataSets(ctx, wire.Caller(ctx))
	out := &rotorv1.DataSetsResponse{}
	for _, d := range all {
		out.DataSets = append(out.DataSets, s.dataSetMessage(d))
	}
	return answer(out, err)
}

func (s data) dataSetMessage(d campaign.DataSet) *rotorv1.DataSet {
	k, _ := s.KMS.Key(d.Key)
	return &rotorv1.DataSet{
		Name: d.Name, Url: d.URL, Key: &rotorv1.KeyRef{Namespace: string(d.Namespace), Name: k.Name}, MaxInFlightNs: int64(d.MaxInFlight),
	}
}

// Census counts ciphertexts by version.
func (s data) Census(ctx context.Context, r *connect.Request[rotorv1.CensusRequest]) (*connect.Response[rotorv1.CensusResponse], error) {
	c, err := s.Campaigns.Census(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()))
	out := &rotorv1.CensusResponse{Unreachable: c.Unreachable, Unknown: c.Unknown, Settled: c.Settled}
	for _, v := range slices.Sorted(maps.Keys(c.Counts)) {
		out.Counts = append(out.Counts, &rotorv1.CensusCount{Version: v, Ciphertexts: c.Counts[v]})
	}
	return answer(out, err)
}

// StartCampaign begins to move data.
func (s data) StartCampaign(ctx context.Context, r *connect.Request[rotorv1.CampaignRequest]) (*connect.Response[rotorv1.Campaign], error) {
	c, err := s.Campaigns.Start(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetTarget(), r.Msg.GetPerSecond())
	return answer(campaignMessage(c), err)
}

// GetCampaign shows how far a campaign is.
func (s data) GetCampaign(ctx context.Context, r *connect.Request[rotorv1.CampaignRef]) (*connect.Response[rotorv1.Campaign], error) {
	c, err := s.Campaigns.Get(ctx, wire.Caller(ctx), r.Msg.GetId())
	return answer(campaignMessage(c), err)
}

func campaignMessage(c campaign.Campaign) *rotorv1.Campaign {
	return &rotorv1.Campaign{
		Id: c.ID, Phase: c.Phase, Scanned: c.Scanned, Moved: c.Moved, Skipped: c.Skipped, Lost: c.Lost, Failed: c.Failed, Total: c.Total,
		Error: c.Error, Done: c.Done(),
	}
}
