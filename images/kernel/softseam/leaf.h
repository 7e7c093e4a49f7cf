/* SPDX-License-Identifier: GPL-2.0-only */
/* The leaves by name, and what was counted of each. */
#ifndef SOFTSEAM_LEAF_H
#define SOFTSEAM_LEAF_H

#include <linux/seq_file.h>

const char *seam_leaf_name(unsigned int leaf);
int seam_leaf_by_name(const char *name);
unsigned int seam_nr_leaves(void);
void seam_leaf_called(unsigned int leaf);
void seam_leaf_failed(unsigned int leaf);
void seam_leaves_show(struct seq_file *m);

#endif
