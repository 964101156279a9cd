package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex/internal/schema"
)

// simpleName is a table's name that needs no quotes, perhaps behind a schema's.
var simpleName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$`)

func newSchema(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "schema postgres|sqlite|mysql",
		Short: "Print the SQL that makes the table",
		Long: `Schema prints the SQL that makes the table, for programs whose tables are made by goose, golang-migrate, Atlas or by
hand. That of mysql is for MariaDB, too. It asks no database. The table has the name that --table gives.`,
		ValidArgs: []string{"postgres", "sqlite", "mysql"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(_ *cobra.Command, args []string) error {
			if !simpleName.MatchString(g.table) {
				return fmt.Errorf("--table %q: want a name of letters, digits and _, or two with a dot between", g.table)
			}
			text, err := schema.SQL(args[0])
			if err != nil {
				return err
			}
			index := "idx_" + strings.ReplaceAll(g.table, ".", "_") + "_lock_id"
			_, err = fmt.Print(strings.NewReplacer("idx_db_mutexes_lock_id", index, "db_mutexes", g.table).Replace(text))
			return err
		},
	}
}
