package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func newDataset(a *app) *cobra.Command {
	return newNoun("dataset", "Register the places where ciphertext lives", newDatasetRegister(a), newDatasetList(a))
}

// datasetView is a data set as programs see it.
type datasetView struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	URL  string `json:"url"`
}

func viewDataset(m *rotorv1.DataSet) datasetView {
	return datasetView{m.GetName(), m.GetKey().GetName(), m.GetUrl()}
}

func newDatasetRegister(a *app) *cobra.Command {
	var key, url string
	var inFlight time.Duration
	c := &cobra.Command{
		Use:   "register NAME --key KEY --url URL",
		Short: "Register a data set, so that census and campaigns reach it",
		Long: `Register a data set, so that census and campaigns reach it. NAME is the joined instance that serves it (spec/dataset.md); it has to answer
with that identity.`,
		Example: "  rotor dataset register board --key records --url https://127.0.0.1:7430/rotor-dataset/v1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if key == "" || url == "" {
				return usage("command line", "--key and --url are needed")
			}
			if err := a.confirm(fmt.Sprintf("register data set %s at %s under key %s: census and campaigns read and write it", args[0], url, key)); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			set := &rotorv1.DataSet{Name: args[0], Key: a.ref(key), Url: url, MaxInFlightNs: int64(inFlight)}
			m, err := message(s.data.Register(c.Context(), request(&rotorv1.RegisterRequest{DataSet: set})))
			if err != nil {
				return err
			}
			return a.showDatasets(viewDataset(m), m)
		},
	}
	c.Flags().StringVar(&key, "key", "", "key that the data is under")
	c.Flags().StringVar(&url, "url", "", "https URL of the data set's adapter")
	c.Flags().Var(duration{&inFlight}, "max-in-flight", "of a data set without a floor: how long a write may be on its way")
	return a.changes(c)
}

func (a *app) showDatasets(value any, all ...*rotorv1.DataSet) error {
	t := table{header: []string{"name", "key", "url"}}
	for _, m := range all {
		t.add(m.GetName(), m.GetKey().GetName(), m.GetUrl())
	}
	return a.show(value, t)
}

func newDatasetList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the registered data sets", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.data.DataSets(c.Context(), request(&rotorv1.DataSetsRequest{})))
			if err != nil {
				return err
			}
			views := []datasetView{}
			for _, d := range m.GetDataSets() {
				views = append(views, viewDataset(d))
			}
			return a.showDatasets(views, m.GetDataSets()...)
		},
	}
}
