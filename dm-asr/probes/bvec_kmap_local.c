/* SPDX-License-Identifier: GPL-2.0 */
/* 5.15: bvec_kmap_local() */
#include <linux/bvec.h>
#include <linux/highmem.h>
void probe(struct bio_vec *bv);
void probe(struct bio_vec *bv) { kunmap_local(bvec_kmap_local(bv)); }
