-- Which aspects the judge has chosen for a prompt, as JSON; NULL: nobody chose.
ALTER TABLE exchanges ADD COLUMN aspect_choice TEXT;
