/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SOFTSEAM_MANUAL_H
#define SOFTSEAM_MANUAL_H

#include <linux/seq_file.h>
#include <linux/types.h>

int seam_manual_call(char *line);
void seam_manual_show(struct seq_file *m);
ssize_t seam_manual_read(char __user *to, size_t len, loff_t *pos);
ssize_t seam_manual_write(const char __user *from, size_t len, loff_t *pos);

#endif
