package cli

import (
	"encoding/pem"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// maxCertificate bounds a CA's file, in bytes.
const maxCertificate = 64 << 10

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
	var key, url, ca string
	c := &cobra.Command{
		Use:     "register NAME --key KEY --url URL",
		Short:   "Register a data set, so that census and campaigns reach it",
		Example: "  rotor dataset register board --key records --url https://127.0.0.1:8443",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if key == "" || url == "" {
				return usage("command line", "--key and --url are needed")
			}
			der, err := readCertificate(ca)
			if err != nil {
				return err
			}
			if err := a.confirm(fmt.Sprintf("register data set %s at %s under key %s: census and campaigns read and write it", args[0], url, key)); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			set := &rotorv1.DataSet{Name: args[0], Key: a.ref(key), Url: url, Ca: der}
			m, err := message(s.data.Register(c.Context(), request(&rotorv1.RegisterRequest{DataSet: set})))
			if err != nil {
				return err
			}
			return a.showDatasets(viewDataset(m), m)
		},
	}
	c.Flags().StringVar(&key, "key", "", "key that the data is under")
	c.Flags().StringVar(&url, "url", "", "https URL of the data set's adapter")
	c.Flags().StringVar(&ca, "ca-file", "", "PEM file of the CA of the adapter's certificate (default: the cluster's own CA)")
	return a.changes(c)
}

func (a *app) showDatasets(value any, all ...*rotorv1.DataSet) error {
	t := table{header: []string{"name", "key", "url"}}
	for _, m := range all {
		t.add(m.GetName(), m.GetKey().GetName(), m.GetUrl())
	}
	return a.show(value, t)
}

// readCertificate reads the first certificate of a PEM file; nil for no file.
func readCertificate(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	b, err := readAll(f, maxCertificate, path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, usage(path, "a PEM file with a certificate")
	}
	return block.Bytes, nil
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
