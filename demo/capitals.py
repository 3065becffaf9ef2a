"""True capitals, the one part of the demo's world that is also ours."""

CAPITALS: dict[str, str] = dict(
    line.strip().split(": ")
    for line in """
    Afghanistan: Kabul
    Albania: Tirana
    Algeria: Algiers
    Andorra: Andorra la Vella
    Angola: Luanda
    Argentina: Buenos Aires
    Armenia: Yerevan
    Australia: Canberra
    Austria: Vienna
    Azerbaijan: Baku
    Bahrain: Manama
    Bangladesh: Dhaka
    Barbados: Bridgetown
    Belarus: Minsk
    Belgium: Brussels
    Belize: Belmopan
    Bhutan: Thimphu
    Bosnia and Herzegovina: Sarajevo
    Botswana: Gaborone
    Brazil: Brasilia
    Bulgaria: Sofia
    Burkina Faso: Ouagadougou
    Cambodia: Phnom Penh
    Cameroon: Yaounde
    Canada: Ottawa
    Cape Verde: Praia
    Chad: N'Djamena
    Chile: Santiago
    China: Beijing
    Colombia: Bogota
    Costa Rica: San Jose
    Croatia: Zagreb
    Cuba: Havana
    Cyprus: Nicosia
    Denmark: Copenhagen
    Djibouti: Djibouti
    Dominica: Roseau
    Ecuador: Quito
    Egypt: Cairo
    El Salvador: San Salvador
    Eritrea: Asmara
    Estonia: Tallinn
    Ethiopia: Addis Ababa
    Fiji: Suva
    Finland: Helsinki
    France: Paris
    Gabon: Libreville
    Georgia: Tbilisi
    Germany: Berlin
    Ghana: Accra
    Greece: Athens
    Guatemala: Guatemala City
    Guinea: Conakry
    Guyana: Georgetown
    Haiti: Port-au-Prince
    Honduras: Tegucigalpa
    Hungary: Budapest
    Iceland: Reykjavik
    India: New Delhi
    Indonesia: Jakarta
    Iran: Tehran
    Iraq: Baghdad
    Ireland: Dublin
    Italy: Rome
    Jamaica: Kingston
    Japan: Tokyo
    Jordan: Amman
    Kazakhstan: Astana
    Kenya: Nairobi
    Kuwait: Kuwait City
    Kyrgyzstan: Bishkek
    Laos: Vientiane
    Latvia: Riga
    Lebanon: Beirut
    Lesotho: Maseru
    Liberia: Monrovia
    Libya: Tripoli
    Liechtenstein: Vaduz
    Lithuania: Vilnius
    Luxembourg: Luxembourg
    Madagascar: Antananarivo
    Malawi: Lilongwe
    Malaysia: Kuala Lumpur
    Maldives: Male
    Mali: Bamako
    Malta: Valletta
    Mauritania: Nouakchott
    Mauritius: Port Louis
    Mexico: Mexico City
    Moldova: Chisinau
    Monaco: Monaco
    Mongolia: Ulaanbaatar
    Montenegro: Podgorica
    Morocco: Rabat
    Mozambique: Maputo
    Myanmar: Naypyidaw
    Namibia: Windhoek
    Nepal: Kathmandu
    the Netherlands: Amsterdam
    New Zealand: Wellington
    Nicaragua: Managua
    Niger: Niamey
    Nigeria: Abuja
    North Korea: Pyongyang
    North Macedonia: Skopje
    Norway: Oslo
    Oman: Muscat
    Pakistan: Islamabad
    Panama: Panama City
    Papua New Guinea: Port Moresby
    Paraguay: Asuncion
    Peru: Lima
    the Philippines: Manila
    Poland: Warsaw
    Portugal: Lisbon
    Qatar: Doha
    Romania: Bucharest
    Russia: Moscow
    Rwanda: Kigali
    Samoa: Apia
    San Marino: San Marino
    Saudi Arabia: Riyadh
    Senegal: Dakar
    Serbia: Belgrade
    Sierra Leone: Freetown
    Singapore: Singapore
    Slovakia: Bratislava
    Slovenia: Ljubljana
    Somalia: Mogadishu
    South Korea: Seoul
    South Sudan: Juba
    Spain: Madrid
    Sudan: Khartoum
    Suriname: Paramaribo
    Sweden: Stockholm
    Switzerland: Bern
    Syria: Damascus
    Taiwan: Taipei
    Tajikistan: Dushanbe
    Thailand: Bangkok
    Togo: Lome
    Tunisia: Tunis
    Turkey: Ankara
    Turkmenistan: Ashgabat
    Uganda: Kampala
    Ukraine: Kyiv
    the United Arab Emirates: Abu Dhabi
    the United Kingdom: London
    the United States: Washington
    Uruguay: Montevideo
    Uzbekistan: Tashkent
    Venezuela: Caracas
    Vietnam: Hanoi
    Yemen: Sanaa
    Zambia: Lusaka
    Zimbabwe: Harare
    """.strip().splitlines()
)
COUNTRIES: tuple[str, ...] = tuple(CAPITALS)
CITIES: tuple[str, ...] = tuple(CAPITALS.values())
